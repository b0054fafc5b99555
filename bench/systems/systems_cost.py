"""What a system costs: parameters and multiplications, and the time of a clip on this machine's processor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import flowless
from flowless.console import progress
from flowless.engines import Engine
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.timing import Timing, time_interleaved

#: Targets that run on a processor.
TARGETS = ("openvino", "onnxruntime")
_ROUNDS = 30


def costs(checkpoints: Mapping[str, Path], val: DatasetIndex) -> dict[str, dict[str, Any]]:
    """Return what each system's network costs.

    Args:
        checkpoints: System -> a checkpoint of it.
        val: Videos to verify with, and to take a clip from.

    Returns:
        System -> `clip`, `parameters`, `macs`, `latencies`, `target` and `latency_ms`; see `sizes` and `latencies`.
    """
    counted, timed = sizes(checkpoints), latencies(checkpoints, val)
    return {name: {**counted[name], **timed[name]} for name in checkpoints}


def sizes(checkpoints: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Count each system's checkpoint: `clip` (its shape), `parameters`, and `macs` of one clip."""
    from flowless.train.checkpoints import load_checkpoint
    from flowless.train.models.flops import count

    found = {}
    for name, checkpoint in checkpoints.items():
        model = load_checkpoint(checkpoint).model
        size = count(model)
        found[name] = {"clip": list(model.spec.shape), "parameters": size.parameters, "macs": size.macs}
    return found


def latencies(checkpoints: Mapping[str, Path], val: DatasetIndex) -> dict[str, dict[str, Any]]:
    """Build each system's fp32 engines, verified, and time one clip on all of them in turn.

    Returns:
        System -> `latencies` (target -> median milliseconds), and the fastest: `target`, `latency_ms`.
    """
    engines: dict[tuple[str, str], Engine] = {}
    with progress() as bar:
        for name, checkpoint in bar.track(checkpoints.items(), description="building engines", total=len(checkpoints)):
            bundle = _built(checkpoint, name, val)
            engines |= {(name, target): flowless.load(bundle, target, "fp32") for target in TARGETS}
    given = {name: _clip(engines[name, TARGETS[0]], val) for name in checkpoints}
    runners = {str(key): partial(engine, given[key[0]]) for key, engine in engines.items()}
    times = time_interleaved(runners, runs=_ROUNDS, warmup=2, warmup_each=1)
    return {name: _fastest({target: times[str((name, target))] for target in TARGETS}) for name in checkpoints}


def _fastest(times: Mapping[str, Timing]) -> dict[str, Any]:
    best = min(times, key=lambda target: times[target].p50_ms)
    found = {target: timing.p50_ms for target, timing in times.items()}
    return {"latencies": found, "target": best, "latency_ms": times[best].p50_ms}


def _built(checkpoint: Path, name: str, val: DatasetIndex) -> Path:
    from flowless.export.build_engine import build
    from flowless.export.bundle_writer import export_bundle

    bundle = checkpoint.parent.with_name(f"{name}.bundle")
    export_bundle(checkpoint, bundle, videos=[val.path_of(video) for video in val.videos[:2]])
    for target in TARGETS:
        build(bundle, target=target)
    return bundle


def _clip(engine: Engine, val: DatasetIndex) -> np.ndarray:
    return load_clip(val.path_of(val.videos[0]), engine.spec)[:1]

"""What a system costs: parameters and multiplications, and the time of a clip on this machine's processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import flowless
from flowless.bench.systems_runs import Run, System
from flowless.console import progress
from flowless.engines import Engine
from flowless.pipeline.index import DatasetIndex
from flowless.pipeline.preprocess import load_clip
from flowless.timing import Timing, time_in_turn

#: Targets that run on a processor.
TARGETS = ("openvino", "onnxruntime")
_ROUNDS = 30


def sizes(systems: Sequence[System], *, work: Path) -> dict[str, dict[str, Any]]:
    """Count each system's first checkpoint: `clip` (its shape), `parameters`, and `macs` of one clip."""
    from flowless.train.checkpoints import load_checkpoint
    from flowless.train.flops import count

    found = {}
    for system in systems:
        model = load_checkpoint(_first(system, work)).model
        size = count(model)
        found[system.name] = {"clip": list(model.spec.shape), "parameters": size.parameters, "macs": size.macs}
    return found


def latencies(systems: Sequence[System], *, work: Path, shapes: Path) -> dict[str, dict[str, Any]]:
    """Build each system's fp32 engines, verified, and time one clip on all of them in turn.

    Twins Training changes the weights and not the network, so each system is built once.

    Returns:
        System -> `latencies` (target -> median milliseconds), and the fastest: `target`, `latency_ms`.
    """
    val = DatasetIndex.load(shapes / "val.index.jsonl")
    engines: dict[tuple[str, str], Engine] = {}
    with progress() as bar:
        for system in bar.track(systems, description="building engines"):
            bundle = _built(system, work, val)
            engines |= {(system.name, target): flowless.load(bundle, target, "fp32") for target in TARGETS}
    clips = {system.name: _clip(engines[system.name, TARGETS[0]], val) for system in systems}
    rivals = {str(key): partial(engine, clips[key[0]]) for key, engine in engines.items()}
    times = time_in_turn(rivals, runs=_ROUNDS, warm_up=2, settle=1)
    return {system.name: _fastest({target: times[str((system.name, target))] for target in TARGETS}) for system in systems}


def _fastest(times: Mapping[str, Timing]) -> dict[str, Any]:
    best = min(times, key=lambda target: times[target].p50_ms)
    found = {target: timing.p50_ms for target, timing in times.items()}
    return {"latencies": found, "target": best, "latency_ms": times[best].p50_ms}


def _built(system: System, work: Path, val: DatasetIndex) -> Path:
    from flowless.export.build_engine import build
    from flowless.export.bundle import export_bundle

    bundle = work / f"{system.name}.bundle"
    export_bundle(_first(system, work), bundle, videos=[val.path_of(video) for video in val.videos[:2]])
    for target in TARGETS:
        build(bundle, target=target)
    return bundle


def _clip(engine: Engine, val: DatasetIndex) -> np.ndarray:
    return load_clip(val.path_of(val.videos[0]), engine.spec)[:1]


def _first(system: System, work: Path) -> Path:
    return work / Run(system, "scores", 0).name / "last.safetensors"

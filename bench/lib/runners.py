"""Runners of a network: each engine of a bundle and PyTorch, ready for interleaved timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowless.engines.backends.backend import why_not
from flowless.engines.backends.openvino_core import HINTS, other_arithmetic
from flowless.engines.bundle.manifest import Manifest
from flowless.errors import first_line
from flowless.timing import time_interleaved

#: Takes uint8 clips `[B, N, m, H, W, 3]`, returns float32 scores `[B, classes]`.
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Runner:
    """One way to run the network; `run` is None where it cannot run here, and `status` says why."""

    name: str
    target: str
    precision: str
    status: str
    run: Run | None = None


def engine_runners(manifest: Manifest, *, threads: int, bf16_too: bool = True) -> list[Runner]:
    """Load every engine of a bundle with `threads` CPU threads; with `bf16_too`, OpenVINO's fp32 engine once more, computing in bf16."""
    import flowless

    runners = []
    for artefact in manifest.artefacts:
        target, openvino = artefact.target, artefact.target == "openvino"
        for hint in (None, "bf16") if openvino and bf16_too and artefact.precision == "fp32" else (None,):
            precision = HINTS[hint] if hint else artefact.precision
            reason = why_not(target, artefact) or why_not_in(hint or artefact.options.get("hint", "f32") if openvino else "f32")
            run = None if reason else flowless.load(manifest.folder, target, artefact.precision, threads=threads, hint=hint)
            runners.append(Runner(f"{target} {precision}", target, precision, reason or "runs", run))
    return runners


def why_not_in(hint: str) -> str | None:
    """Return why OpenVINO is not measured with a hint: it computes in another precision on this processor. None where it does not."""
    other = other_arithmetic(hint)
    return f"OpenVINO computes in {other} on this processor" if other else None


def torch_runners(checkpoint: Path, *, compiled: bool) -> list[Runner]:
    """Return a checkpoint's network in PyTorch eager and, with `compiled`, `torch.compile`."""
    import torch

    from flowless.bench.lib.networks import Eager
    from flowless.train.checkpoints import load_checkpoint

    found = load_checkpoint(checkpoint)
    runners = [Runner("pytorch eager", "pytorch", "fp32", "runs", Eager(found.model))]
    if compiled:
        run = Eager(torch.compile(found.model, dynamic=False))
        try:
            run(np.zeros((1, *found.spec.shape), np.uint8))
            runners.append(Runner("torch.compile", "torch.compile", "fp32", "runs", run))
        except Exception as error:  # no compiler, or any of its many error types
            runners.append(Runner("torch.compile", "torch.compile", "fp32", f"fails here: {first_line(error)[:200]}"))
    return runners


def time_runners(
    runners: Sequence[Runner],
    clip: np.ndarray,
    *,
    runs: int,
    rate: str,
    items: int = 1,
    probe: np.ndarray | None = None,
    compare: bool = True,
) -> list[dict[str, Any]]:
    """Time runners interleaved and compare their outputs with the first one's; return one JSON row each, without times where it cannot run.

    Args:
        runners: The first is PyTorch eager, which the others are compared with.
        clip: uint8 `[B, N, m, H, W, 3]`.
        runs: Rounds.
        rate: Key of the items per second, such as `clips_per_s`.
        items: What one run makes of them.
        probe: Clips of several videos, uint8 `[K, N, m, H, W, 3]`: rows then have the SNR of the scores over them in dB (`snr_db`).
        compare: Compare outputs; off where the first has other weights.
    """
    running = {runner.name: runner.run for runner in runners if runner.run is not None}
    outputs = {name: run(clip) for name, run in running.items()} if compare else {}
    scores = {name: np.concatenate([run(one[None]) for one in probe]) for name, run in running.items()} if probe is not None else {}
    timings = time_interleaved({name: partial(run, clip) for name, run in running.items()}, runs=runs, warmup_each=1)
    first = runners[0].name
    rows = []
    for runner in runners:
        row: dict[str, Any] = {"name": runner.name, "target": runner.target, "precision": runner.precision, "status": runner.status}
        if timing := timings.get(runner.name):
            row |= timing.to_dict()
            row |= {rate: round(timing.per_second(items), 3), "times_eager": round(timings[first].p50_ms / timing.p50_ms, 3)}
        if runner.name in outputs:
            row["max_abs_diff"] = float(np.abs(outputs[runner.name] - outputs[first]).max())
        if runner.name in scores:
            row["snr_db"] = snr_db(scores[runner.name], scores[first])
        rows.append(row)
    return rows


def snr_db(scores: np.ndarray, exact: np.ndarray) -> float | None:
    """Return the spread over clips of exact scores `[K, classes]` over the RMS difference, in dB; None where nothing differs, or by NaN."""
    from flowless.export.verify.parity import spread_of

    error = float(np.sqrt(np.mean((scores.astype(np.float64) - exact) ** 2)))
    return round(20 * float(np.log10(spread_of(exact.astype(np.float64)) / error)), 1) if error > 0 else None

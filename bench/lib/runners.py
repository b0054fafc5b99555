"""What runs a network: every target of a bundle that this machine runs, and PyTorch, ready to be timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowless.console import log
from flowless.engines.backends.backend import open_backend, why_not
from flowless.engines.backends.openvino_core import HINTS, other_arithmetic
from flowless.engines.bundle.manifest import Manifest, read_manifest
from flowless.engines.targets import TARGETS, Target
from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.timing import time_interleaved

if TYPE_CHECKING:
    from flowless.engines.engine import Engine

#: Answers uint8 clips `[B, N, m, H, W, 3]` with float32 scores `[B, classes]`.
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Runner:
    """One way to run the network; `run` is None where it cannot run here, and `status` says why."""

    name: str
    target: str
    precision: str
    status: str
    run: Run | None = None


def bundle_of(model: str, *, spec: ClipSpec, folder: Path, targets: Sequence[str] | None = None, **config: Any) -> Manifest:
    """Export a network with lively random weights into `folder`, and build the targets in fp32; None: all that this machine builds.

    Returns:
        The bundle's manifest; `folder / "model.safetensors"` is the checkpoint it was made from.
    """
    from flowless.export.build_engine import build, build_all

    bundle = exported(model, spec=spec, folder=folder, **config).folder
    if targets is None:
        build_all(bundle)
    else:
        for target in known_targets(targets):
            build(bundle, target=target)
    return read_manifest(bundle)


def exported(model: str, *, spec: ClipSpec, folder: Path, videos: Sequence[Path] = (), **config: Any) -> Manifest:
    """Export a network with lively random weights into `folder / "bundle"`, compared with PyTorch on `videos`, or on made ones."""
    from flowless.export.bundle_writer import export_bundle

    return export_bundle(random_checkpoint(model, spec=spec, folder=folder, **config), folder / "bundle", videos=videos)


def random_checkpoint(model: str, *, spec: ClipSpec, folder: Path, classes: int, **config: Any) -> Path:
    """Write `folder / "model.safetensors"`, a network with lively random weights."""
    from flowless.bench.lib.networks import lively_model
    from flowless.train.checkpoints import save_checkpoint

    network = lively_model(model, spec=spec, classes=classes, **config)
    labels = [f"class {number}" for number in range(classes)]
    return save_checkpoint(folder / "model.safetensors", network, model_name=model, recipe={}, spec=spec, labels=labels, metrics={})


def engine_runners(manifest: Manifest, *, threads: int, targets: Sequence[str] = (), precisions: Sequence[str] = ()) -> list[Runner]:
    """Open every engine of a bundle: one runner an artefact.

    Where no precisions are named and the bundle has no bf16 engine of OpenVINO's, its fp32 engine runs once more, computing in bf16.

    Args:
        manifest: The bundle.
        threads: CPU threads of each.
        targets: Only these; none means all that the bundle has.
        precisions: Only these; none means all that the bundle has.
    """
    wanted = known_targets(targets)
    hints = () if precisions or manifest.artefact("openvino", "bf16") else ("bf16",)
    runners = []
    for artefact in manifest.artefacts:
        if wanted and artefact.target not in wanted:
            continue
        if precisions and artefact.precision not in precisions:
            continue
        extra = [hint for hint in hints if artefact.target == "openvino" and artefact.precision == "fp32"]
        for hint in (None, *extra):
            precision = HINTS[hint] if hint else artefact.precision
            name = f"{artefact.target} {precision}"
            asked = hint or artefact.options.get("hint", "f32")
            reason = why_not(artefact.target, artefact) or why_not_in(asked if artefact.target == "openvino" else "f32")
            if reason:
                runners.append(Runner(name, artefact.target, precision, reason))
                continue
            path = manifest.path_of(artefact.files[0])
            run = open_backend(artefact, path, classes=len(manifest.labels), threads=threads, hint=hint)
            runners.append(Runner(name, artefact.target, precision, "runs", run))
    return runners


def why_not_in(hint: str) -> str | None:
    """Say why OpenVINO would not be measured in the arithmetic of a hint: it computes in another here. None where it would."""
    other = other_arithmetic(hint)
    return f"OpenVINO computes in {other} on this processor" if other else None


def torch_runners(checkpoint: Path | None, manifest: Manifest, *, compiled: bool = True) -> list[Runner]:
    """Return PyTorch eager and `torch.compile`, with the checkpoint's weights, or random ones of the same network.

    The time does not depend on the weights; where they are random, scores cannot be compared.
    """
    import torch

    from flowless.bench.lib.networks import Eager, config_of, lively_model
    from flowless.train.checkpoints import load_checkpoint

    if checkpoint is not None:
        network = load_checkpoint(checkpoint).model
    else:
        network = lively_model(manifest.model, spec=manifest.spec, **config_of(manifest))
    runners = [Runner("pytorch eager", "pytorch", "fp32", "runs", Eager(network))]
    if compiled:
        run = Eager(torch.compile(network, dynamic=False))
        try:
            run(np.zeros((1, *manifest.spec.shape), np.uint8))
            runners.append(Runner("torch.compile", "torch.compile", "fp32", "runs", run))
        except Exception as error:  # no compiler, or any of the many errors of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.print(f"torch.compile left out: {reason}", style="dim", markup=False)
            runners.append(Runner("torch.compile", "torch.compile", "fp32", f"fails here: {reason[:200]}"))
    return runners


def time_runners(
    runners: Sequence[Runner], clip: np.ndarray, *, runs: int, compare: bool, probe: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Time runners in turn on one batch.

    Args:
        runners: The first is what the others' answers are compared with.
        clip: uint8 `[B, N, m, H, W, 3]`.
        runs: Rounds.
        compare: Also record each runner's largest difference from the first; only where the weights are the same.
        probe: Clips of several videos, uint8 `[K, N, m, H, W, 3]`: with `compare`, also record how far below the spread of the first
            runner's scores over them the differences lie, in decibels (`snr_db`).

    Returns:
        One JSON row a runner; rows of runners that do not run here have no times, and their `status` says why.
    """
    running = {runner.name: runner.run for runner in runners if runner.run is not None}
    answers = {name: run(clip) for name, run in running.items()} if compare else {}
    noise = _noise(running, probe) if compare and probe is not None else {}
    timings = time_interleaved({name: partial(run, clip) for name, run in running.items()}, runs=runs, warmup_each=1)
    first = next(iter(answers.values()), None)
    rows = []
    for runner in runners:
        row: dict[str, Any] = {"name": runner.name, "target": runner.target, "precision": runner.precision, "status": runner.status}
        if runner.name in timings:
            row |= timings[runner.name].to_dict()
        if runner.name in answers and first is not None:
            row["max_abs_diff"] = float(np.abs(answers[runner.name] - first).max())
        if runner.name in noise:
            row["snr_db"] = noise[runner.name]
        rows.append(row)
    return rows


def _noise(running: dict[str, Run], clips: np.ndarray) -> dict[str, float | None]:
    """Return each run's `snr_db` against the first; the first's own is None, since nothing differs."""
    scores = {name: np.concatenate([run(clip[None]) for clip in clips]) for name, run in running.items()}
    exact = next(iter(scores.values()))
    return {name: snr_db(found, exact) for name, found in scores.items()}


def snr_db(scores: np.ndarray, exact: np.ndarray) -> float | None:
    """Return the spread of exact scores `[K, classes]` over clips, over the root mean square difference, in decibels.

    None where nothing differs, or a difference is no number.
    """
    from flowless.export.verify.parity import spread_of

    error = float(np.sqrt(np.mean((scores.astype(np.float64) - exact) ** 2)))
    return round(20 * float(np.log10(spread_of(exact.astype(np.float64)) / error)), 1) if error > 0 else None


def open_engine(manifest: Manifest, row: dict[str, Any], *, threads: int) -> Engine:
    """Load the engine that a row of `time_runners` is about, as a user would."""
    import flowless

    stored = manifest.artefact(row["target"], row["precision"]) is not None
    hint = None if stored else next(hint for hint, precision in HINTS.items() if precision == row["precision"])
    return flowless.load(manifest.folder, row["target"], row["precision"] if stored else None, threads=threads, hint=hint)


def known_targets(targets: Sequence[str]) -> list[Target]:
    """Return the targets in the order of `TARGETS`; refuse a name that is none."""
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown:
        raise FlowlessError(f"--targets names {', '.join(unknown)}; there are {', '.join(TARGETS)}.")
    return [target for target in TARGETS if target in targets]

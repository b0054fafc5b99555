"""The gates: what an engine must show before it is kept. Exit code 3 and nothing kept where it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from flowless.console import log
from flowless.engines.backends.backend import Backend, open_backend, why_not
from flowless.engines.bundle.manifest import Artefact, Manifest
from flowless.errors import CheckFailed, FlowlessError
from flowless.export.precision.calibration import chosen
from flowless.export.precision.precisions import PRECISIONS
from flowless.export.verify import parity
from flowless.export.verify.accuracy import clips_of, compare_accuracy
from flowless.export.verify.checks import Checks, EngineRefused
from flowless.export.verify.reference import Reference, made_clips
from flowless.files import sha256_of
from flowless.machine import machine_name
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.timing import time_interleaved

#: Videos of an index that an int8 engine is compared on, none of which it was calibrated on.
_FRESH = 16
#: Rounds of the race between two precisions, each of which both run once.
_ROUNDS = 15


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A built engine that has not been kept yet."""

    record: Artefact
    """Its record; files relative to `folder`."""
    folder: Path
    """Where its files lie."""
    proto: onnx.ModelProto
    """The graph that it was built from, in its precision."""
    calibration: dict[str, Any] | None = None
    """int8: the record of the calibration."""
    index: Path | None = None
    """int8: the index that it was calibrated from."""
    threads: int | None = None
    """CPU threads; None lets the library choose."""

    @property
    def what(self) -> str:
        """Its name, for messages."""
        return f"{self.record.target} {self.record.precision}"


def verified(manifest: Manifest, candidate: Candidate, checks: Checks) -> Artefact:
    """Take an engine through the gates: layers, parity, accuracy, speed.

    Args:
        manifest: The bundle, with the engines kept so far.
        candidate: The engine.
        checks: How strict to be.

    Returns:
        Its record with what was measured. An engine that cannot run here passes only the gate of its layers.

    Raises:
        EngineRefused: It failed a gate.
    """
    record = candidate.record
    figures: dict[str, Any] = {}
    _check_layers(candidate, figures)
    if why_not(record.target, record):
        return replace(record, figures=figures)
    backend = open_backend(record, candidate.folder / record.files[0], classes=len(manifest.labels), threads=candidate.threads)
    exact, higher = _yardsticks(manifest, candidate)
    if checks.parity:
        _check_parity(manifest, candidate, (backend, exact), checks, figures)
        if checks.data is not None:
            _check_accuracy(manifest, candidate, (backend, exact), checks, figures)
    _check_speed(manifest, candidate, (backend, higher), checks, figures)
    status = "verified" if checks.parity else "built, not compared"
    return replace(record, status=status, max_abs_diff=figures.get("max_abs_diff"), figures=figures)


def _check_layers(candidate: Candidate, figures: dict[str, Any]) -> None:
    """Gate (d): what the library really computes in, where it tells."""
    from flowless.export.verify.inspect_engine import inspect

    found = inspect(candidate.record, candidate.folder, candidate.proto)
    figures["layers"] = found.summary
    if found.wrong:
        shown = "; ".join(found.wrong[:3]) + (f"; and {len(found.wrong) - 3} more" if len(found.wrong) > 3 else "")
        raise EngineRefused(
            f"{candidate.what}: not what the graph asks for: {shown}. Nothing was kept: {candidate.record.target} does not compute this "
            f"graph in {candidate.record.precision} here; build another precision.",
            gate="layers",
            short=shown,
            figures=figures,
        )


def _yardsticks(manifest: Manifest, candidate: Candidate) -> tuple[Backend, dict[str, Backend]]:
    """Return what computes exactly, and the kept engines of the same target and a higher precision that run here, by precision."""
    record, classes = candidate.record, len(manifest.labels)

    def opened(artefact: Artefact) -> Backend:
        manifest.check(artefact.files)
        return open_backend(artefact, manifest.path_of(artefact.files[0]), classes=classes, threads=candidate.threads)

    higher = PRECISIONS[: PRECISIONS.index(record.precision)]
    kept = [item for item in manifest.artefacts if item.target == record.target and item.precision in higher]
    kept = [item for item in kept if why_not(item.target, item) is None]
    backends = {item.precision: opened(item) for item in kept}
    graph = Artefact(target="onnxruntime", precision="fp32", status="verified", files=(manifest.graph,))
    return backends.get("fp32") or opened(graph), backends


def _check_parity(
    manifest: Manifest, candidate: Candidate, backends: tuple[Backend, Backend], checks: Checks, figures: dict[str, Any]
) -> None:
    """Gate (a): PyTorch's scores, on the bundle's clips; of int8 on clips of videos only, and on fresh ones."""
    backend, exact = backends
    reference = Reference.load(manifest.path_of(manifest.reference), manifest.spec)
    clips, expected = reference.clips, reference.scores
    if candidate.record.precision == "int8":
        # Noise and edges of full contrast lie far outside any calibrated range, and are rightly cut off.
        videos = [place for place, name in enumerate(reference.names) if name not in made_clips(manifest.spec)]
        clips, expected = clips[videos], expected[videos]
        fresh = _fresh_clips(manifest, candidate, checks)
        if len(fresh):
            clips, expected = np.concatenate([clips, fresh]), np.concatenate([expected, parity.run_in_batches(exact, fresh, 1)])
    try:
        result = parity.check(
            backend, clips, expected, precision=candidate.record.precision, what=f"{manifest.folder.name}: {candidate.what}"
        )
    except CheckFailed as error:
        raise EngineRefused(str(error), gate="parity", short="its scores are not PyTorch's", figures=figures) from error
    figures |= {"clips": result.clips, "max_abs_diff": result.max_abs_diff, "spread": result.spread, "allowed": result.allowed}
    if np.isfinite(result.snr):
        figures["snr_db"] = round(result.snr, 1)


def _fresh_clips(manifest: Manifest, candidate: Candidate, checks: Checks) -> np.ndarray:
    """Return clips of videos that int8 was not calibrated on, first of the data to be evaluated; maybe none."""
    source = checks.data or candidate.index
    if source is None:
        return np.empty((0, *manifest.spec.shape), np.uint8)
    index = DatasetIndex.load(source)
    used = set((candidate.calibration or {}).get("used", ())) if source == candidate.index else set()
    records = [record for record in chosen(index, seed=1) if record.id not in used][:_FRESH]
    clips = [clip[:1] for _, clip in clips_of(index, records, manifest.spec) if not isinstance(clip, FlowlessError)]
    return np.concatenate(clips) if clips else np.empty((0, *manifest.spec.shape), np.uint8)


def _check_accuracy(
    manifest: Manifest, candidate: Candidate, backends: tuple[Backend, Backend], checks: Checks, figures: dict[str, Any]
) -> None:
    """Gate (b): top-1 on the user's own videos."""
    assert checks.data is not None
    found = compare_accuracy(*backends, manifest, checks.data, what=candidate.what)
    figures |= {
        "data": sha256_of(checks.data),
        "videos": found.videos,
        "top1": round(found.top1, 4),
        "fp32_top1": round(found.exact_top1, 4),
    }
    if found.drop > checks.max_drop + 1e-9:
        raise EngineRefused(
            f"{candidate.what}: top-1 falls from {found.exact_top1:.1%} to {found.top1:.1%} on {found.videos} videos, by {found.drop:.1f} "
            f"points; {checks.max_drop:g} are allowed (--max-drop). Nothing was kept. Calibrate on more or other videos, or keep a higher "
            "precision.",
            gate="accuracy",
            short=f"top-1 falls by {found.drop:.1f} points",
            figures=figures,
        )


def _check_speed(
    manifest: Manifest, candidate: Candidate, backends: tuple[Backend, dict[str, Backend]], checks: Checks, figures: dict[str, Any]
) -> None:
    """Gate (c): an engine must be faster than every kept one of a higher precision; all run in turn."""
    backend, higher = backends
    clip = Reference.load(manifest.path_of(manifest.reference), manifest.spec).clips[:1]
    runners = {precision: partial(run, clip) for precision, run in {**higher, candidate.record.precision: backend}.items()}
    found = {precision: timing.p50_ms for precision, timing in time_interleaved(runners, runs=_ROUNDS, warmup=2, warmup_each=1).items()}
    own = figures["latency_ms_p50"] = found.pop(candidate.record.precision)
    figures["machine"] = machine_name()
    if not found:
        return
    above = min(found, key=lambda precision: found[precision])
    figures |= {"above": above, "above_latency_ms_p50": found[above]}
    if own < found[above]:
        return
    times = f"{own:.3g} ms a clip, {above} {found[above]:.3g} ms"
    if checks.slower:
        log.print(f"{candidate.what}: no faster than {above} here ({times})", style="yellow", markup=False, soft_wrap=True)
        return
    raise EngineRefused(
        f"{candidate.what}: no faster here than {above}: {times}. Nothing was kept; use {candidate.record.target} "
        f"{above}, which is the faster (--keep-slower keeps it all the same).",
        gate="speed",
        short=f"no faster than {above} here",
        figures=figures,
    )

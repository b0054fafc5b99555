"""The gates that an engine must pass before it is kept: layers, parity, accuracy, speed. One that fails ends with exit code 3."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from flowless.console import log
from flowless.engines.backends.backend import Backend, open_backend, why_not
from flowless.engines.bundle.manifest import Artefact, Manifest
from flowless.errors import CheckFailed, FlowlessError
from flowless.export.precision.calibration import calibration_order
from flowless.export.precision.precisions import PRECISIONS
from flowless.export.verify import parity
from flowless.export.verify.accuracy import clips_of, compare_accuracy
from flowless.export.verify.checks import Checks, EngineRefused
from flowless.export.verify.reference import Reference, made_clips
from flowless.export.verify.speed import compare_speed
from flowless.files import sha256_of
from flowless.machine import machine_name
from flowless.pipeline.dataset.index import DatasetIndex

#: Videos of an index that an int8 engine is compared on; it was calibrated on none of them.
_UNSEEN = 16


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
    def name(self) -> str:
        """Target and precision, for messages."""
        return f"{self.record.target} {self.record.precision}"


@dataclass(frozen=True, kw_only=True)
class OpenedCandidate:
    """A candidate that runs here, with the engines that it is compared with."""

    manifest: Manifest
    """The bundle, with the engines kept so far."""
    candidate: Candidate
    checks: Checks
    reference: Reference
    """The bundle's clips, with PyTorch's scores."""
    engine: Backend
    """The candidate itself."""
    exact: Backend
    """The target's fp32 engine, or ONNX Runtime's where there is none."""
    higher: dict[str, Backend]
    """The target's kept engines of higher precision that run here, by precision."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What the gates have measured so far; they add to it."""


def run_gates(manifest: Manifest, candidate: Candidate, checks: Checks) -> Artefact:
    """Put an engine through the gates.

    Args:
        manifest: The bundle, with the engines kept so far.
        candidate: The engine.
        checks: The limits.

    Returns:
        Its record with what was measured. An engine that cannot run here passes only the gate of its layers.

    Raises:
        EngineRefused: It failed a gate.
    """
    record, figures = candidate.record, _check_layers(candidate)
    if why_not(record.target, record):
        return replace(record, figures=figures)
    opened = _open(manifest, candidate, checks, figures)
    if checks.parity:
        _check_parity(opened)
        if checks.data is not None:
            _check_accuracy(opened, checks.data)
    _check_speed(opened)
    status = "verified" if checks.parity else "built, not compared"
    return replace(record, status=status, max_abs_diff=figures.get("max_abs_diff"), figures=figures)


def _check_layers(candidate: Candidate) -> dict[str, Any]:
    """Refuse an engine whose layers compute in another precision than the graph's, where the library reports it."""
    from flowless.export.verify.inspect_engine import inspect

    found = inspect(candidate.record, candidate.folder, candidate.proto)
    figures: dict[str, Any] = {"layers": found.summary}
    if found.wrong:
        shown = "; ".join(found.wrong[:3]) + (f"; and {len(found.wrong) - 3} more" if len(found.wrong) > 3 else "")
        raise EngineRefused(
            f"{candidate.name}: not the graph's precision: {shown}. The new engine was not kept: {candidate.record.target} does not "
            f"compute this graph in {candidate.record.precision} here; build another precision.",
            gate="layers",
            short=shown,
            figures=figures,
        )
    return figures


def _open(manifest: Manifest, candidate: Candidate, checks: Checks, figures: dict[str, Any]) -> OpenedCandidate:
    record = candidate.record
    open_any = partial(open_backend, classes=len(manifest.labels), state=manifest.state, threads=candidate.threads)

    def open_kept(artefact: Artefact) -> Backend:
        manifest.check(artefact.files)
        return open_any(artefact, manifest.path_of(artefact.files[0]))

    higher = PRECISIONS[: PRECISIONS.index(record.precision)]
    kept = [item for item in manifest.artefacts if item.target == record.target and item.precision in higher]
    backends = {item.precision: open_kept(item) for item in kept if why_not(item.target, item) is None}
    graph = Artefact(target="onnxruntime", precision="fp32", status="verified", files=(manifest.graph,))
    return OpenedCandidate(
        manifest=manifest,
        candidate=candidate,
        checks=checks,
        reference=Reference.load(manifest.path_of(manifest.reference), manifest.spec),
        engine=open_any(record, candidate.folder / record.files[0]),
        exact=backends.get("fp32") or open_kept(graph),
        higher=backends,
        figures=figures,
    )


def _check_parity(opened: OpenedCandidate) -> None:
    """Compare scores with PyTorch's on the bundle's clips; of int8 on clips of videos alone, and on videos of the index as well."""
    manifest, candidate, reference, figures = opened.manifest, opened.candidate, opened.reference, opened.figures
    if candidate.record.precision == "int8":
        # Noise and edges of full contrast lie far outside any calibrated range, so clipping them is right.
        videos = [place for place, name in enumerate(reference.names) if name not in made_clips(manifest.spec)]
        clips, expected = reference.clips[videos], reference.scores[videos]
        unseen = _unseen_clips(opened)
        if len(unseen):
            clips, expected = np.concatenate([clips, unseen]), np.concatenate([expected, parity.run_in_batches(opened.exact, unseen, 1)])
        names = tuple(reference.names[place] for place in videos) + ("",) * len(unseen)
        reference = replace(reference, names=names, clips=clips, scores=expected)
    what = f"{manifest.folder.name}: {candidate.name}"
    try:
        result = parity.check(opened.engine, reference, precision=candidate.record.precision, what=what)
    except CheckFailed as error:
        raise EngineRefused(str(error), gate="parity", short="its scores are not PyTorch's", figures=figures) from error
    figures |= {"clips": result.clips, "max_abs_diff": result.max_abs_diff, "spread": result.spread, "allowed": result.allowed}
    if np.isfinite(result.snr):
        figures["snr_db"] = round(result.snr, 1)


def _unseen_clips(opened: OpenedCandidate) -> np.ndarray:
    """Return clips of videos that int8 was not calibrated on, of the data for accuracy if there are any; possibly none."""
    manifest, candidate = opened.manifest, opened.candidate
    source = opened.checks.data or candidate.index
    if source is None:
        return np.empty((0, *manifest.spec.shape), np.uint8)
    index = DatasetIndex.load(source)
    used = set((candidate.calibration or {}).get("used", ())) if source == candidate.index else set()
    records = [record for record in calibration_order(index, seed=1) if record.id not in used][:_UNSEEN]
    clips = [clip[:1] for _, clip in clips_of(index, records, manifest.spec) if not isinstance(clip, FlowlessError)]
    return np.concatenate(clips) if clips else np.empty((0, *manifest.spec.shape), np.uint8)


def _check_accuracy(opened: OpenedCandidate, data: Path) -> None:
    """Compare top-1 with the exact engine's on the user's own videos."""
    candidate, checks, figures = opened.candidate, opened.checks, opened.figures
    found = compare_accuracy(opened.engine, opened.exact, opened.manifest, data, what=candidate.name)
    figures |= {
        "data": sha256_of(data),
        "videos": found.videos,
        "top1": round(found.top1, 4),
        "fp32_top1": round(found.exact_top1, 4),
    }
    if found.drop > checks.max_drop + 1e-9:
        raise EngineRefused(
            f"{candidate.name}: top-1 falls from {found.exact_top1:.1%} to {found.top1:.1%} on {found.videos} videos, by {found.drop:.1f} "
            f"points; {checks.max_drop:g} are allowed (--max-drop). The new engine was not kept. Calibrate on more or other "
            "videos, or keep a higher precision.",
            gate="accuracy",
            short=f"top-1 falls by {found.drop:.1f} points",
            figures=figures,
        )


def _check_speed(opened: OpenedCandidate) -> None:
    """Refuse an engine that is no faster than a kept one of higher precision, unless `checks.slower`."""
    candidate, figures = opened.candidate, opened.figures
    found = compare_speed(opened.engine, opened.higher, opened.reference.clips[:1], precision=candidate.record.precision)
    figures |= {"latency_ms_p50": found.own_ms, "machine": machine_name()}
    if found.fastest is None or found.fastest_ms is None:
        return
    figures |= {"above": found.fastest, "above_latency_ms_p50": found.fastest_ms}
    if found.faster:
        return
    times = f"{found.own_ms:.3g} ms a clip, {found.fastest} {found.fastest_ms:.3g} ms"
    if opened.checks.slower:
        log.print(f"{candidate.name}: no faster than {found.fastest} here ({times})", style="yellow", markup=False, soft_wrap=True)
        return
    raise EngineRefused(
        f"{candidate.name}: no faster here than {found.fastest}: {times}. The new engine was not kept; use "
        f"{candidate.record.target} {found.fastest}, which is faster (--keep-slower keeps this one all the same).",
        gate="speed",
        short=f"no faster than {found.fastest} here",
        figures=figures,
    )

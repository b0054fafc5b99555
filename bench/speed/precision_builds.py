"""Every precision of every target, built with its time and size: what was kept, and why the others were not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowless.console import log
from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.targets import Target
from flowless.errors import FlowlessError
from flowless.export.precision.calibration import Calibration
from flowless.export.precision.precisions import PRECISIONS
from flowless.export.targets.build_options import BuildOptions
from flowless.export.verify.checks import Checks, EngineRefused
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord, stamp_of
from flowless.pipeline.video.reader import VideoReader

#: Words of `--precision`.
ALL = "all"


def wanted_precisions(words: Sequence[str]) -> tuple[str, ...]:
    """Return the precisions that `--precision` names, from the most exact to the fastest."""
    return PRECISIONS if ALL in words else tuple(precision for precision in PRECISIONS if precision in words)


def made_index(folder: Path, spec: ClipSpec, *, train: int = 40, val: int = 16) -> tuple[Path, Path]:
    """Write videos as different from each other as a lively network's clips (`random_clips`), and index them.

    Videos that resemble each other would not do: the scores of random weights vary with what a clip looks like, and where that
    hardly changes, rounding is large beside it. On moving shapes of 256 x 256, int8 PAN-Lite ResNet-50 stays 17 dB below the
    spread of its scores, on these 27 dB.

    Args:
        folder: Where to; it is made.
        spec: What a clip is; a video has as many frames, as large as the resized ones.
        train: Videos to calibrate on.
        val: Videos to compare on.

    Returns:
        The two indexes.
    """
    from flowless.bench.lib.networks import random_clips
    from flowless.pipeline.video.encode import write_video

    side = max(16, -(-spec.short_side // 2) * 2)
    larger = replace(spec, height=side, width=side, short_side=side)
    indexes = []
    for number, (name, count) in enumerate({"train": train, "val": val}.items()):
        videos = []
        for video in range(count):
            frames = random_clips(1, larger, seed=10_000 * (number + 1) + video)[0].reshape(-1, side, side, 3)
            path = folder / name / f"{video:04d}.mp4"
            write_video(path, frames)
            with VideoReader(path) as film:
                info = film.info
            videos.append(VideoRecord(id=path.name, path=path.name, label=0, frames=info.frames, info=info, stamp=stamp_of(path)))
        index = DatasetIndex(root=folder / name, labels=("class 0",), videos=tuple(videos))
        indexes.append(folder / f"{name}.index.jsonl")
        index.save(indexes[-1])
    return indexes[0], indexes[1]


@contextmanager
def cold_cache(folder: Path) -> Iterator[None]:
    """Keep graphs in `folder` for the block, so that nothing made by an earlier run shortens what is measured."""
    before = os.environ.get("FLOWLESS_CACHE")
    os.environ["FLOWLESS_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["FLOWLESS_CACHE"]
        else:
            os.environ["FLOWLESS_CACHE"] = before


def build_precisions(
    bundle: Path,
    *,
    targets: Sequence[Target] = (),
    precisions: Sequence[str],
    calibration: Calibration | None,
    checks: Checks,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Build every precision of every target; an engine that fails a gate is told and not kept.

    Args:
        bundle: The bundle, which is added to.
        targets: Which; none means all that this machine builds.
        precisions: Which.
        calibration: What int8 is calibrated on.
        checks: The gates.
        threads: CPU threads of the gates.

    Returns:
        One JSON row each: `target`, `precision`, `status`, `gate`, `megabytes`, `graph_s` (seconds to cast or to calibrate and
        quantise the graph, which all targets share), `build_s` (seconds of the target's own build, with its gates).
    """
    from flowless.export.targets.builders import buildable

    chosen = list(targets)
    if not chosen:
        chosen, left_out = buildable()
        for target, reason in left_out.items():
            log.print(f"{target} left out: {reason}", style="dim", markup=False, soft_wrap=True)
    graph_seconds: dict[str, float] = {}
    rows = []
    for target in chosen:
        # The yardstick of the others is built first, so that none of them is charged with it.
        for precision in ("fp32", *(name for name in precisions if name != "fp32")):
            row = _build_one(bundle, target, precision, (calibration, checks, BuildOptions(threads=threads)), graph_seconds)
            if precision in precisions:
                rows.append(row)
    return rows


def _build_one(
    bundle: Path,
    target: Target,
    precision: str,
    how: tuple[Calibration | None, Checks, BuildOptions],
    graph_seconds: dict[str, float],
) -> dict[str, Any]:
    from flowless.export.build_engine import build
    from flowless.export.precision.graph_cache import precise_graph

    calibration, checks, options = how
    row: dict[str, Any] = {"target": target, "precision": precision, "status": "", "gate": "", "megabytes": None}
    row |= {"graph_s": None, "build_s": None}
    try:
        if precision != "fp32":
            if precision not in graph_seconds:
                start = time.perf_counter()
                precise_graph(read_manifest(bundle), precision, calibration)
                graph_seconds[precision] = round(time.perf_counter() - start, 2)
            row["graph_s"] = graph_seconds[precision]
        start = time.perf_counter()
        record = build(bundle, target=target, precision=precision, options=options, checks=checks, calibration=calibration)
    except EngineRefused as error:
        return {**row, "status": f"not kept: {error.short}", "gate": error.gate}
    except FlowlessError as error:
        return {**row, "status": f"not built: {str(error).replace(f'{bundle.parent}/', '').split('. ')[0]}"}
    manifest = read_manifest(bundle)
    megabytes = round(sum(manifest.files[name].bytes for name in record.files) / 1e6, 3)
    return {**row, "status": record.status, "megabytes": megabytes, "build_s": round(time.perf_counter() - start, 2)}

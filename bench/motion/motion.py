"""`flowless bench motion`: motion cues beside optical flow, on the same frames: frames per second, operations, parameters, a picture."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from flowless.bench.lib.goals import goal
from flowless.bench.lib.run_bench import TimingArgs, run_bench
from flowless.bench.lib.tables import rows_table
from flowless.console import log
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_clip
from flowless.timing import time_interleaved

if TYPE_CHECKING:
    from rich.table import Table

    from flowless.bench.lib.runners import Run
    from flowless.bench.motion.motion_methods import Method

#: Methods that take seconds a clip are timed in every n-th round only.
_SLOW, _STRIDE = {"TV-L1", "Farneback", "RAFT-small"}, 5
#: Cue -> what its paper says of its speed over TV-L1.
_CLAIMS: dict[str, dict[str, Any]] = {
    "PA": {"paper": "8196 fps, TV-L1 8 fps", "paper_ratio": 1024.5, "where": "PAN, Table II: one TITAN X, the same stacks"},
    "displacement map": {"paper": "190 fps, TV-L1 15 fps", "paper_ratio": 12.7, "where": "Disentangling, Table 3: TITAN X, 112 x 112"},
}


@dataclass(frozen=True, kw_only=True)
class Motion(TimingArgs):
    """Measure PA, displacement maps, dynamic appearance and CMM beside TV-L1, Farneback, DIS and RAFT-small, on the same frames.

    A clip is 8 stacks of 6 adjacent frames, as PAN and Dynamic Appearance count theirs: 48 frames, whose number over the median time is
    frames/s. Each method makes 5 maps of a stack, one for each pair of frames; dynamic appearance makes one picture of all 6. Optical flow
    is given grey frames, made beforehand; the cues are given RGB bytes, and their time includes normalisation. Displacement maps and CMM
    are measured with the layers of the network that they need, and alone. Weights are random. TV-L1, Farneback and RAFT-small run in every
    fifth round only.

    Beside the JSON a picture is written: optical flow, and the cue of each checkpoint, at the moments of two videos that move most.
    """

    videos: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Videos, or folders of them, which take turns stack by stack. None: a few are generated."""
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A trained model whose cue the picture shows beside optical flow; repeat it for several."""
    size: int = 224
    """Side of the square frames, in pixels: a multiple of 8, at least 128."""
    stacks: int = 8
    """Stacks of six frames in a clip."""
    out: Path = Path("runs/bench/motion.json")
    """JSON to write; the picture gets the same name and ends in .jpg."""

    def __post_init__(self) -> None:
        if self.size < 128 or self.size % 8:
            raise FlowlessError(f"bench motion: size is {self.size}; it must be a multiple of 8, at least 128, as RAFT needs.")
        if self.out.suffix != ".json":
            raise FlowlessError(f"bench motion: out is {self.out}; it must end in .json: its picture is named like it.")


def main(args: Sequence[str]) -> None:
    """`flowless bench motion`."""
    run_bench("motion", Motion, args, measure=measure, tables=tables)


def measure(settings: Motion) -> dict[str, Any]:
    """Measure, write the picture, and return the document's parts."""
    from flowless.bench.lib.networks import torch_threads
    from flowless.bench.lib.sample_videos import sample_videos, videos_of
    from flowless.bench.motion.motion_methods import PAPER_CLIP, methods_of
    from flowless.bench.motion.motion_picture import load_cues, write_picture

    cues, size = load_cues(settings.checkpoint), settings.size
    spec = replace(PAPER_CLIP, segments=settings.stacks, height=size, width=size, short_side=size * 8 // 7)
    frames, picture = spec.segments * spec.frames_per_segment, settings.out.with_suffix(".jpg")
    with torch_threads(settings.threads or None) as threads, tempfile.TemporaryDirectory(prefix="flowless-motion-") as work:
        videos = videos_of(settings.videos) or sample_videos(Path(work) / "videos", frames=60)
        clip = np.stack([load_clip(videos[place % len(videos)], spec)[0, place] for place in range(spec.segments)])[None]
        log.print("exporting the cues …", style="dim")
        methods = methods_of(clip, spec=spec, threads=threads, folder=Path(work))
        rows = _rows(methods, runs=settings.runs, frames=frames)
        write_picture(picture, videos[:2], cues=cues, spec=spec)
    found = claims(rows)
    names = {"videos": [video.name for video in videos[: spec.segments]], "checkpoint": [path.name for path in settings.checkpoint]}
    return {
        "settings": {"spec": spec.to_dict(), "frames": frames, "threads": threads, **names},
        "methods": [{key: getattr(method, key) for key in ("name", "maps", "gmacs", "parameters")} for method in methods],
        "rows": rows,
        "claims": found,
        "picture": {"file": picture.name, "weights": {name: loaded.name for name, loaded in cues.items()}},
        "goals": [goal("PA's best engine over TV-L1, same frames, same cores", 1000, found[0]["ours"])],
    }


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the methods and the papers' claims as tables."""
    methods = {method["name"]: method for method in document["methods"]}
    rows = [{**methods[row["method"]], **row} for row in document["rows"]]
    columns = "name frames_per_s maps_per_s times_tv_l1 gmacs parameters status"
    return [
        rows_table(f"motion of the same {document['settings']['frames']} frames", rows, columns),
        rows_table("the papers' claims", document["claims"], "what paper paper_ratio ours where"),
    ]


def fastest(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return each method's fastest row, of those that were timed, in their order."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if "frames_per_s" in row:
            found[row["method"]] = max(found.get(row["method"], row), row, key=lambda one: one["frames_per_s"])
    return found


def claims(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a claim: `what`, `paper`, `paper_ratio`, `where`, `ours` (None where it was not measured)."""
    ours = {cue: row.get("times_tv_l1") for cue, row in fastest(rows).items()}
    return [{"what": f"{cue} over TV-L1, frames a second", **claim, "ours": ours.get(cue)} for cue, claim in _CLAIMS.items()]


def _rows(methods: Sequence[Method], *, runs: int, frames: int) -> list[dict[str, Any]]:
    """Time all runners, interleaved; one JSON row each, without times where it does not run here."""
    pairs = [(f"{method.name}, {runner.name}", method, runner) for method in methods for runner in method.runners]
    running = {name: partial(_run_all, runner.run, method.given) for name, method, runner in pairs if runner.run}
    log.print(f"measuring {len(running)} runners …", style="dim")
    outputs = {name: run() for name, run in running.items()}
    stride = {name: _STRIDE for name, method, _ in pairs if method.name in _SLOW}
    timings = time_interleaved(running, runs=runs, warmup=0, warmup_each=1, stride=stride)
    baseline = timings.get("TV-L1, opencv")
    rows = []
    for name, method, runner in pairs:
        row = {"name": name, "method": method.name, "engine": runner.name, "precision": runner.precision, "status": runner.status}
        if timing := timings.get(name):
            row |= timing.to_dict()
            row |= {"frames_per_s": round(timing.per_second(frames), 2), "maps_per_s": round(timing.per_second(method.maps), 2)}
            row |= {"times_tv_l1": round(baseline.p50_ms / timing.p50_ms, 3)} if baseline else {}
            row["max_abs_diff"] = float(np.abs(outputs[name] - outputs[f"{method.name}, {method.runners[0].name}"]).max())
        rows.append(row)
    return rows


def _run_all(run: Run, given: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([run(one) for one in given])

"""`flowless bench motion`: motion cues beside optical flow, on the same frames: frames per second, operations, parameters, pictures."""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from flowless.bench.lib.goals import goal, goals_table
from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json
from flowless.machine import usable_cores

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from flowless.bench.motion.motion_methods import Method
    from flowless.pipeline.clip.spec import ClipSpec

#: A runner whose clip takes longer than this runs in every n-th round only.
_LONG_SECONDS, _STRIDE = 1.0, 5


#: What papers say of their cues' speed over TV-L1.
_CLAIMS: dict[str, dict[str, Any]] = {
    "PA": {
        "paper": "8196 fps, TV-L1 8 fps",
        "paper_ratio": 1024.5,
        "where": "PAN, Table II and its supplement: one TITAN X, the same 8 stacks of 6 frames",
    },
    "displacement map": {
        "paper": "190 fps at 112 x 112, TV-L1 15 fps",
        "paper_ratio": 12.7,
        "where": "Disentangling, Table 3, on a TITAN X; its Table 9 counts the network behind the maps in",
    },
}


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Measure PA, displacement maps, dynamic appearance and CMM beside TV-L1, Farneback, DIS and RAFT-small, on the same frames.

    A clip is 8 stacks of 6 adjacent frames, as PAN and Dynamic Appearance count theirs. Of each stack PA, displacement maps, CMM
    and every optical flow make 5 maps, one for each pair of frames; dynamic appearance makes one picture of all 6. Frames per second are
    the clip's 48 over its median time; maps per second are reported too. All get the same number of threads. Optical flow is given
    grey frames, made beforehand; the cues are given RGB bytes, and their time includes normalisation.

    Beside the JSON a picture is written: optical flow, and the cue of each checkpoint, at the moments that move most.
    """

    videos: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Videos, or folders of them, which take turns stack by stack. None: a few are generated."""
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A trained model whose cue the picture shows beside optical flow; repeat it for several."""
    show: int = 2
    """Videos in the picture."""
    moments: int = 3
    """Moments of each of them."""
    runs: int = 15
    """Rounds, each of which every runner runs once; those that take more than a second run in every fifth."""
    threads: int = 0
    """CPU threads of every runner; 0: one per core."""
    size: int = 224
    """Side of the square frames, in pixels: a multiple of 8."""
    stacks: int = 8
    """Stacks of six frames in a clip."""
    out: Path = Path("runs/bench/motion.json")
    """JSON to write; the picture gets the same name and ends in .jpg."""
    json: bool = False
    """Print one JSON document instead of the tables."""

    def __post_init__(self) -> None:
        """Refuse options that measure nothing."""
        least = {"show": 1, "moments": 1, "runs": 1, "stacks": 1, "threads": 0, "size": 32}
        wrong = [f"{name} is {getattr(self, name)}; it must be at least {low}" for name, low in least.items() if getattr(self, name) < low]
        wrong += [f"size is {self.size}; it must be a multiple of 8"] if self.size % 8 else []
        wrong += [] if self.out.suffix == ".json" else [f"out is {self.out}; it must end in .json: its picture is named like it"]
        if wrong:
            raise FlowlessError(f"bench motion: {'; '.join(wrong)}.")


def main(args: Sequence[str]) -> None:
    """`flowless bench motion`."""
    settings = tyro.cli(Motion, prog="flowless bench motion", description=inspect.getdoc(Motion), args=args)
    document = measure(settings)
    emit(document, *tables(document), as_json=settings.json)


def measure(settings: Motion) -> dict[str, Any]:
    """Measure, draw, write both files, and return the document.

    Raises:
        FlowlessError: A video or a checkpoint cannot be read.
    """
    from flowless.bench.lib.networks import torch_threads
    from flowless.bench.lib.sample_videos import sample_videos
    from flowless.bench.lib.system_load import busy_share, judged
    from flowless.bench.lib.video_files import videos_of
    from flowless.bench.motion.motion_maps import PAPER_CLIP
    from flowless.bench.motion.motion_methods import methods_of
    from flowless.bench.motion.motion_picture import load_cues, write_picture
    from flowless.machine import environment

    refuse_unwritable(settings.out)
    threads = settings.threads or usable_cores()
    cues, busy = load_cues(settings.checkpoint), busy_share()
    size = settings.size
    spec = replace(PAPER_CLIP, segments=settings.stacks, height=size, width=size, short_side=size * 8 // 7)
    with torch_threads(threads), tempfile.TemporaryDirectory(prefix="flowless-motion-") as work:
        videos = videos_of(settings.videos) or sample_videos(Path(work) / "videos", frames=60)
        clip = _clip(videos, spec)
        log.print("exporting the cues …", style="dim")
        methods = methods_of(clip, spec=spec, threads=threads, folder=Path(work))
        rows = _rows(methods, runs=settings.runs, frames=spec.segments * spec.frames_per_segment)
        log.print("drawing …", style="dim")
        rates = {name: f"{row['maps_per_s']:,.1f} maps/s, {row['engine']}" for name, row in fastest(rows).items()}
        picture = settings.out.with_suffix(".jpg")
        shown = write_picture(picture, videos[: settings.show], cues=cues, spec=spec, rates=rates, moments=settings.moments)
    keys = ("name", "about", "maps", "gmacs", "parameters")
    sizes = [{key: getattr(method, key) for key in keys} for method in methods]
    found = claims(rows)
    document = {
        "benchmark": "motion",
        "environment": environment(),
        "settings": {
            "spec": spec.to_dict(),
            "frames": spec.segments * spec.frames_per_segment,
            "runs": settings.runs,
            "threads": threads,
            "busy_before": busy,
            "videos": [video.name for video in videos[: spec.segments]] if settings.videos else "made: see bench/lib/sample_videos.py",
            "weights": "random, full size: time does not depend on them",
            "units": "frames_per_s: a clip's frames over its median time; maps_per_s: what was made of them; gmacs: 10^9 multiplications "
            "with additions for a clip, which the papers call FLOPs, of convolutions and matrix products",
        },
        "methods": sizes,
        "rows": rows,
        "claims": found,
        "picture": {"file": picture.name, **shown},
        "goals": judged([goal("PA's best engine over TV-L1, same frames, same cores", 1000, found[0]["ours"])], busy),
    }
    write_json(settings.out, document)
    return document


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the result for the console."""
    from flowless.bench.lib.tables import rows_table

    settings = document["settings"]
    sizes = {method["name"]: {"gmacs": method["gmacs"], "parameters": method["parameters"]} for method in document["methods"]}
    shown = [{**sizes[row["method"]], **row, "status": row["status"].replace("runs", "")} for row in document["rows"]]
    columns = {"name": "", "frames_per_s": "frames/s", "maps_per_s": "maps/s", "times_tv_l1": "× TV-L1"}
    columns |= {"gmacs": "GMAC", "parameters": "parameters", "status": ""}
    about = f"{settings['frames']} frames of {settings['spec']['height']} x {settings['spec']['width']}, {settings['threads']} threads"
    claimed = {"what": "", "paper": "paper", "paper_ratio": "ratio", "ours": "here", "where": ""}
    return [
        rows_table(f"motion of the same {about}", shown, columns),
        rows_table("the papers' claims", document["claims"], claimed),
        goals_table(document["goals"]),
    ]


def fastest(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return each method's fastest row, of those that were timed, in their order."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if "frames_per_s" in row:
            found[row["method"]] = max(found.get(row["method"], row), row, key=lambda one: one["frames_per_s"])
    return found


def claims(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a claim: `what`, `paper`, `paper_ratio`, `where`, `ours` (None where it was not measured), `engine`."""
    best = fastest(rows)
    ours = {cue: best.get(cue, {}) for cue in _CLAIMS}
    return [
        {"what": f"{cue} over TV-L1, frames a second", **said, "ours": ours[cue].get("times_tv_l1"), "engine": ours[cue].get("engine")}
        for cue, said in _CLAIMS.items()
    ]


def _clip(videos: Sequence[Path], spec: ClipSpec) -> np.ndarray:
    """Return one clip uint8 `[1, N, m, H, W, 3]` whose n-th stack is the n-th of a video, the videos taking turns."""
    import numpy as np

    from flowless.pipeline.clip.preprocess import load_clip

    clips = [load_clip(video, spec)[0] for video in videos[: spec.segments]]
    return np.stack([clips[place % len(clips)][place] for place in range(spec.segments)])[None]


def _rows(methods: Sequence[Method], *, runs: int, frames: int) -> list[dict[str, Any]]:
    """Time all runners, interleaved; one JSON row each, without times where it does not run here."""
    import numpy as np

    from flowless.timing import time_interleaved

    pairs = [(f"{method.name}, {runner.name}", method, runner) for method in methods for runner in method.runners]
    running = {name: partial(runner.run, method.given) for name, method, runner in pairs if runner.run}
    log.print(f"measuring {len(running)} runners …", style="dim")
    outputs, stride = {}, {}
    for name, run in running.items():
        run()
        start = time.perf_counter()
        outputs[name] = run()
        stride[name] = _STRIDE if time.perf_counter() - start > _LONG_SECONDS else 1
    timings = time_interleaved(running, runs=runs, warmup=0, warmup_each=1, stride=stride)
    slowest = timings.get("TV-L1, opencv")
    rows = []
    for name, method, runner in pairs:
        row = {"name": name, "method": method.name, "engine": runner.name, "target": runner.target, "precision": runner.precision}
        row |= {"status": runner.status}
        if timing := timings.get(name):
            row |= timing.to_dict()
            row |= {"frames_per_s": round(timing.per_second(frames), 2), "maps_per_s": round(timing.per_second(method.maps), 2)}
            row |= {"times_tv_l1": round(slowest.p50_ms / timing.p50_ms, 3)} if slowest else {}
            exact = outputs.get(f"{method.name}, {method.runners[0].name}")
            if len(method.runners) > 1 and exact is not None:
                row["max_abs_diff"] = float(np.abs(outputs[name] - exact).max())
        rows.append(row)
    return rows

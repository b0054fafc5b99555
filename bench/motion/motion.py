"""Motion cues beside optical flow, on the same frames in one run: frames a second, operations, parameters, and pictures of each."""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json
from flowless.machine import usable_cores

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from flowless.bench.motion.motion_cues import Method
    from flowless.pipeline.clip.spec import ClipSpec

#: A runner whose clip takes longer than this takes its turn in every fifth round only.
_LONG_SECONDS, _SELDOM = 1.0, 5


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Measure PA, displacement maps, dynamic appearance and CMM beside TV-L1, Farneback, DIS and RAFT-small, on the same frames.

    A clip is 8 stacks of 6 adjacent frames, as PAN and Dynamic Appearance count theirs. Of each stack PA, displacement maps, CMM
    and every optical flow make 5 maps, one a pair of frames; dynamic appearance makes one picture of all 6. A second's frames
    are a clip's 48 over its median time; its maps are counted too. All get the same number of threads. Optical flow is given
    grey frames, made beforehand; the cues are given RGB bytes, and normalise them in their time.

    Beside the JSON a picture of every cue is written, of the moments that move most.
    """

    videos: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Videos, or folders of them; stack by stack they take turns. None: a few are made."""
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A trained model whose cue the picture shows; repeat it for several. Without one, a cue has random weights."""
    show: int = 2
    """Videos in the picture."""
    moments: int = 3
    """Moments of each of them."""
    runs: int = 15
    """Rounds, each of which every runner runs once; those that take more than a second run in every fifth."""
    threads: int = 0
    """CPU threads of every runner; 0: one a core."""
    size: int = 224
    """Side of the square that all see, in pixels: a multiple of 8."""
    stacks: int = 8
    """Stacks of six frames in a clip."""
    out: Path = Path("runs/bench/motion.json")
    """JSON to write; the picture gets the same name and ends in .jpg."""
    json: bool = False
    """Print one JSON document instead of the tables."""

    def __post_init__(self) -> None:
        """Refuse counts that measure nothing."""
        wrong = [f"{name} is {getattr(self, name)}" for name in ("show", "moments", "runs", "stacks") if getattr(self, name) < 1]
        if wrong:
            raise FlowlessError(f"bench motion: {', '.join(wrong)}; each must be at least 1.")
        if self.out.suffix != ".json":
            raise FlowlessError(f"bench motion: out is {self.out}; it must end in .json: its picture is named like it.")
        if self.threads < 0:
            raise FlowlessError(f"bench motion: threads is {self.threads}; it must be at least 1, or 0 for one a core.")
        if self.size < 32 or self.size % 8:
            raise FlowlessError(f"bench motion: size is {self.size}; it must be a multiple of 8 and at least 32.")


def main(words: Sequence[str]) -> None:
    """`flowless bench motion`."""
    settings = tyro.cli(Motion, prog="flowless bench motion", description=inspect.getdoc(Motion), args=words)
    document = measure(settings)
    emit(document, *tables(document), as_json=settings.json)


def measure(settings: Motion) -> dict[str, Any]:
    """Measure, draw, write both files, and return the document.

    Raises:
        FlowlessError: A video or a checkpoint cannot be read.
    """
    from flowless.bench.lib.networks import torch_threads
    from flowless.bench.lib.system_load import busy_share, judged
    from flowless.bench.motion.motion_claims import claims, goals, quickest
    from flowless.bench.motion.motion_cues import our_methods
    from flowless.bench.motion.motion_flows import flow_methods, opencv_threads
    from flowless.bench.motion.motion_strip import load_cues, write_strip
    from flowless.machine import environment

    refuse_unwritable(settings.out)
    threads = settings.threads or usable_cores()
    cues = load_cues(settings.checkpoint)
    busy = busy_share()
    with ExitStack() as stack:
        stack.enter_context(torch_threads(threads))
        stack.enter_context(opencv_threads(threads))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowless-motion-")))
        spec = _spec(settings)
        videos = _videos(settings.videos, work)
        clip = _clip(videos, spec)
        log.print("exporting the cues …", style="dim")
        methods = [*our_methods(clip, spec=spec, threads=threads, folder=work), *flow_methods(clip)]
        rows = _rows(methods, settings, frames=spec.segments * spec.frames_per_segment)
        picture = settings.out.with_suffix(".jpg")
        rates = {name: (row["maps_per_s"], row["engine"]) for name, row in quickest(rows).items()}
        log.print("drawing …", style="dim")
        shown = write_strip(picture, videos[: settings.show], cues=cues, spec=spec, rates=rates, moments=settings.moments)
    sizes = [
        {"name": one.name, "about": one.about, "maps": one.maps, "gmacs": one.gmacs, "parameters": one.parameters, "counted": one.counted}
        for one in methods
    ]
    # Sizes are the papers' where the clip is.
    found = claims(rows, sizes if (settings.stacks, settings.size) == (8, 224) else None)
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
            "with additions for a clip, which the papers call FLOPs",
        },
        "methods": sizes,
        "rows": rows,
        "claims": found,
        "picture": {"file": picture.name, **shown},
        "goals": judged(goals(found), busy),
    }
    write_json(settings.out, document)
    return document


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the result for people."""
    from flowless.bench.lib.goals import goals_table
    from flowless.bench.lib.tables import rows_table

    settings = document["settings"]
    shown = [{**row, "status": "" if row["status"] == "runs" else row["status"]} for row in document["rows"]]
    columns = {"name": "", "frames_per_s": "frames/s", "maps_per_s": "maps/s", "times_tv_l1": "× TV-L1", "status": ""}
    sizes = [{**method, "uncounted": "not counted" if method["gmacs"] is None else ""} for method in document["methods"]]
    counted = {"name": "", "gmacs": "GMAC", "parameters": "parameters", "maps": "maps", "uncounted": ""}
    about = f"{settings['frames']} frames of {settings['spec']['height']} x {settings['spec']['width']}, {settings['threads']} threads"
    claimed = {"what": "", "paper": "paper says", "paper_ratio": "paper", "ours": "here", "where": "where"}
    return [
        rows_table(f"motion of the same {about}", shown, columns),
        rows_table("what that takes", sizes, counted),
        rows_table("what the papers say, and this run", document["claims"], claimed),
        goals_table(document["goals"]),
    ]


def _spec(settings: Motion) -> ClipSpec:
    from dataclasses import replace

    from flowless.bench.motion.motion_maps import PAPER_CLIP

    return replace(PAPER_CLIP, segments=settings.stacks, height=settings.size, width=settings.size, short_side=settings.size * 8 // 7)


def _videos(sources: Sequence[Path], work: Path) -> list[Path]:
    from flowless.bench.lib.reversal_films import videos_of
    from flowless.bench.lib.sample_videos import sample_videos

    if not sources:
        log.print("making videos …", style="dim")
        return sample_videos(work / "videos", frames=60)
    return videos_of(sources)


def _clip(videos: Sequence[Path], spec: ClipSpec) -> np.ndarray:
    """Return one clip uint8 `[1, N, m, H, W, 3]` whose n-th stack is the n-th of a video, the videos taking turns."""
    import numpy as np

    from flowless.pipeline.clip.preprocess import load_clip

    clips = [load_clip(video, spec)[0] for video in videos[: spec.segments]]
    return np.stack([clips[place % len(clips)][place] for place in range(spec.segments)])[None]


def _rows(methods: Sequence[Method], settings: Motion, *, frames: int) -> list[dict[str, Any]]:
    """Time all runners in turn; one JSON row each, without times where it does not run here."""
    import numpy as np

    from flowless.timing import time_interleaved

    running = {
        f"{method.name}, {runner.name}": partial(runner.run, method.given) for method in methods for runner in method.runners if runner.run
    }
    log.print(f"measuring {len(running)} runners …", style="dim")
    answers, stride = {}, {}
    for name, run in running.items():
        run()
        start = time.perf_counter()
        answers[name] = run()
        stride[name] = _SELDOM if time.perf_counter() - start > _LONG_SECONDS else 1
    timings = time_interleaved(running, runs=settings.runs, warmup=0, warmup_each=1, stride=stride)
    slowest = timings.get("TV-L1, opencv")
    rows = []
    for method in methods:
        exact = answers.get(f"{method.name}, {method.runners[0].name}")
        for runner in method.runners:
            name = f"{method.name}, {runner.name}"
            row = {"name": name, "method": method.name, "engine": runner.name, "target": runner.target, "precision": runner.precision}
            row |= {"status": runner.status}
            if name in timings:
                timing = timings[name]
                row |= timing.to_dict()
                row |= {"frames_per_s": round(timing.per_second(frames), 2), "maps_per_s": round(timing.per_second(method.maps), 2)}
                row |= {"times_tv_l1": round(slowest.p50_ms / timing.p50_ms, 3)} if slowest else {}
                if len(method.runners) > 1 and exact is not None:
                    row["max_abs_diff"] = float(np.abs(answers[name] - exact).max())
            rows.append(row)
    return rows

"""Measure timelines: mean average precision on joined videos with known borders beside two baselines, and speed beside real time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import flowless
from flowless.bench.lib.goals import goal
from flowless.bench.lib.run_bench import BenchArgs, run_bench
from flowless.bench.lib.tables import rows_table
from flowless.bench.systems.settings import FRAMES, Real, Systems, refuse_common_videos
from flowless.bench.systems.training_runs import Training, train_all
from flowless.bench.timeline.average_precision import Part, average_precisions
from flowless.bench.timeline.joined_videos import (
    BACKGROUND,
    JoinedVideo,
    described,
    real_videos,
    shapes_videos,
    with_background,
    write_backgrounds,
)
from flowless.console import log
from flowless.engines.engine import Engine, softmax
from flowless.engines.timeline.options import TimelineOptions
from flowless.engines.timeline.segments import suppress
from flowless.engines.timeline.video_timeline import Segment, Timeline, timeline
from flowless.errors import FlowlessError
from flowless.files import whole_folder
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.scan import ScanOptions, run_scan
from flowless.pipeline.synthetic.moving_shapes import FPS, ShapesOptions, generate

#: Temporal IoU of a true detection.
IOU = 0.5
#: Least probability of a detection: the average precision ranks them.
_THRESHOLD = 0.1
#: Training clips of each other label on real clips, and strides of a window.
_OTHERS, _STRIDES = 4, 10


@dataclass(frozen=True, kw_only=True)
class TimelineArgs(BenchArgs):
    """Train a small network on clips, and find the same actions in long videos of other clips, whose borders are known.

    Moving Shapes: validation scenes with still frames between them; the network has a class for background. Real clips, where --train and
    --test name the indexes of flowless bench real: its opposite actions, each test clip once, between clips of other actions; other
    people than in training. A window is as long as a training clip on average. Measured are the mean average precision at a temporal IoU
    of 0.5 (as ActivityNet's evaluation), beside the windows themselves (non-maximum suppression), equal parts of a window's length and one
    label for each video, and frames per second, decoded and scored. Trainings are kept in the folder named like --out.
    """

    train: Path | None = None
    """Index of the real training clips."""
    test: Path | None = None
    """Index of the real test clips, of other people."""
    train_videos: int = 2400
    """Training videos of Moving Shapes; half of them are reversals."""
    val_videos: int = 240
    """Validation videos of Moving Shapes; half as many scenes are in the long videos."""
    epochs: int = 6
    """Moving Shapes: times that training sees every video."""
    real_epochs: int = 40
    """Real clips: the same."""
    actions: int = 12
    """Moving Shapes: actions in a video."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A training, and the long videos to find its actions in."""

    name: str
    training: Training
    system: str
    videos: list[JoinedVideo]
    window: float
    """Seconds of a window."""


def main(args: Sequence[str]) -> int:
    """`flowless bench timeline`."""
    # Other programs make it slower at most, and do not change what is found.
    run_bench("timeline", TimelineArgs, args, measure=measure, tables=tables, judge_busy=True)
    return 0


def measure(settings: TimelineArgs) -> dict[str, Any]:
    """Train what is not trained, find the actions, and return the document's parts."""
    if (settings.train is None) != (settings.test is None):
        raise FlowlessError("bench timeline: --train and --test go together: the two indexes of flowless bench real.")
    work = (settings.out or Path("runs/bench/timeline.json")).with_suffix("")
    sets = [_shapes(settings, work), *([_real(settings, work)] if settings.train is not None else [])]
    results = train_all([one.training for one in sets])
    found = []
    for one, result in zip(sets, results, strict=True):
        log.print(f"{one.name}: finding actions …", style="dim")
        trained = {"system": one.system, "epochs": one.training.recipe.epochs, "train_top1": round(result["history"][-1]["train_top1"], 4)}
        trained["train_seconds"] = round(result["seconds"])
        found.append({"set": one.name, **described(one.videos), **trained, **_measure_set(one, work)})
    return {"settings": {"iou": IOU, "threshold": _THRESHOLD, "strides_a_window": _STRIDES}, "sets": found, "goals": _goals(found)}


def _shapes(settings: TimelineArgs, work: Path) -> TestSet:
    """Generate what is not there yet of Moving Shapes with background; return its training and its long videos."""
    options = ShapesOptions(frames=FRAMES, train_videos=settings.train_videos, val_videos=settings.val_videos)
    folder = work / f"shapes-{settings.train_videos}-{settings.val_videos}"
    index = folder / "train.jsonl"
    if not index.is_file():
        generate(folder / "videos", options=options)
        with whole_folder(folder / "videos" / "train" / BACKGROUND) as draft:
            write_backgrounds(draft, options, count=settings.train_videos // 12)
        run_scan(folder / "videos" / "train", out=index, options=ScanOptions(decode=False))
    like = Systems(out=folder / "systems.json", systems=("pan-lite",), epochs=settings.epochs, seeds=1).training("pan-lite", 0)
    with whole_folder(folder / "joined") as draft:
        videos = shapes_videos(draft, options, actions=settings.actions)
    videos = [replace(video, path=folder / "joined" / video.path.name) for video in videos]
    training = replace(like, data=index, folder=folder / f"pan-lite-{settings.epochs}")
    return TestSet(name="Moving Shapes", training=training, system="pan-lite", videos=videos, window=FRAMES / FPS)


def _real(settings: TimelineArgs, work: Path) -> TestSet:
    """Return the training on real clips, other labels as background, and the long videos of the test clips."""
    assert settings.train is not None
    assert settings.test is not None
    train, test = DatasetIndex.load(settings.train), DatasetIndex.load(settings.test)
    refuse_common_videos("timeline", train, test)
    actions = [label for label in dict.fromkeys("/".join(Real.opposites).split("/")) if label in train.labels]
    if not actions:
        raise FlowlessError(f"bench timeline: {settings.train} has none of the actions {', '.join(Real.opposites)}. Give UTD-MHAD's index.")
    folder = work / "real"
    index = folder / "train.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = with_background(train, actions, others=_OTHERS)
    chosen.save(index)
    like = Real(train=index, test=settings.test, out=folder / "real.json", systems=("stm",), seeds=1, epochs=settings.real_epochs)
    with whole_folder(folder / "joined") as draft:
        videos = real_videos(draft, test, actions)
    videos = [replace(video, path=folder / "joined" / video.path.name) for video in videos]
    seconds = [video.frames / video.info.fps for video in chosen.videos if chosen.labels[video.label] != BACKGROUND]
    training = like.training("stm", 0)
    return TestSet(name="real clips", training=training, system="stm", videos=videos, window=round(float(np.mean(seconds)), 2))


def _measure_set(one: TestSet, work: Path) -> dict[str, Any]:
    """Return a set's mean average precisions, its speed and its window."""
    engine = _engine(one, work)
    options = TimelineOptions(
        window=one.window,
        stride=one.window / _STRIDES,
        threshold=_THRESHOLD,
        background=(BACKGROUND,),
        merge=0.0,
        detections=True,
    )
    methods: dict[str, list[Part]] = {name: [] for name in ("detections", "segments", "sliding windows", "equal parts", "one label")}
    elapsed = 0.0
    engine.warm_up(8)
    for video in one.videos:
        made = timeline(engine, video.path, options)
        elapsed += made.elapsed
        methods["detections"] += _parts(video, made.detections)
        methods["segments"] += _parts(video, made.segments)
        methods["sliding windows"] += _parts(video, sliding_windows(made))
        methods["equal parts"] += _parts(video, equal_parts(timeline(engine, video.path, replace(options, stride=one.window))))
        methods["one label"] += _parts(video, equal_parts(timeline(engine, video.path, replace(options, window=1e4, stride=1e4))))
    truth = [part for video in one.videos for part in video.truth]
    rows = []
    for method, found in methods.items():
        each = average_precisions(found, truth, iou=IOU)
        mean = round(float(np.mean(list(each.values()))), 4)
        rows.append({"method": method, "found": len(found), "map": mean, "each": {name: round(value, 4) for name, value in each.items()}})
    frames, seconds = sum(video.frames for video in one.videos), sum(video.frames / video.fps for video in one.videos)
    speed = {"frames_per_s": round(frames / elapsed, 1), "times_real_time": round(seconds / elapsed, 2)}
    return {
        "window": one.window,
        "stride": round(options.stride, 4),
        "engine": f"{engine.target} {engine.precision}",
        **speed,
        "methods": rows,
    }


def _engine(one: TestSet, work: Path) -> Engine:
    bundle = work / f"{one.system}.bundle"
    flowless.export(one.training.folder / "last.safetensors", bundle, videos=[video.path for video in one.videos[:2]])
    flowless.build(bundle, target="openvino")
    return flowless.load(bundle, "openvino", "fp32")


def sliding_windows(made: Timeline) -> list[Segment]:
    """Return the baseline of THUMOS'14: the windows themselves, each label on its own, by non-maximum suppression."""
    found = []
    spans = [(window.start, window.end) for window in made.windows]
    for index, shares in enumerate(softmax(made.scores).T):
        if made.labels[index] in made.options.background:
            continue
        for at in suppress(spans, shares.tolist(), iou=made.options.nms):
            (start, end), score = spans[at], float(shares[at])
            if score >= made.options.threshold:
                found.append(Segment(start=start, end=end, label=made.labels[index], index=index, score=score, peak=(start + end) / 2))
    return found


def equal_parts(made: Timeline) -> list[Segment]:
    """Return the baseline: each window as a detection of its most probable label, unless that is background."""
    found = []
    for window, shares in zip(made.windows, softmax(made.scores), strict=True):
        best = int(shares.argmax())
        if made.labels[best] not in made.options.background and shares[best] >= made.options.threshold:
            middle = (window.start + window.end) / 2
            label, score = made.labels[best], float(shares[best])
            found.append(Segment(start=window.start, end=window.end, label=label, index=best, score=score, peak=middle))
    return found


def _parts(video: JoinedVideo, segments: Sequence[Segment]) -> list[Part]:
    return [Part(video.path.name, item.label, item.start, item.end, item.score) for item in segments]


def _goals(sets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    goals = []
    for one in sets:
        means = {row["method"]: row["map"] for row in one["methods"]}
        best = max(means["equal parts"], means["one label"])
        lead = round(means["detections"] - best, 4)
        goals.append(goal(f"{one['set']}: mAP at IoU {IOU:g} over that of equal parts and of one label", 0.1, lead))
        goals.append(goal(f"{one['set']}: times real time, decoding and scoring", 1.0, one["times_real_time"]))
    return goals


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the document as tables."""
    rows = [{**one, **row} for one in document["sets"] for row in one["methods"]]
    columns = {"set": "videos", "method": "method", "map": f"mAP at IoU {IOU:g}", "found": "detections", "actions": "actions"}
    speed = {"set": "videos", "seconds": "seconds", "engine": "engine", "frames_per_s": "frames/s", "times_real_time": "× real time"}
    return [rows_table("Actions in long videos", rows, columns), rows_table("Decoded and scored", document["sets"], speed)]

"""The timeline of a video: what happens when, from sliding windows that an engine scores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowless.engines.engine import Engine, softmax
from flowless.engines.timeline.options import TimelineOptions
from flowless.engines.timeline.segments import Steps, best_segments, class_segments, steps_of
from flowless.engines.timeline.window_scores import score_windows
from flowless.engines.timeline.windows import See, Window, plan_windows
from flowless.errors import FlowlessError
from flowless.machine import usable_cores

if TYPE_CHECKING:
    from flowless.pipeline.video.frame_folder import FrameFolder
    from flowless.pipeline.video.info import VideoInfo
    from flowless.pipeline.video.reader import VideoReader

#: Called with the windows that are scored and all of them.
Progress = Callable[[int, int], None]
#: Called with the time in seconds and the pixels uint8 `[H, W, 3]` of a frame.
SeeTime = Callable[[float, NDArray[np.uint8]], None]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a video with one action."""

    start: float
    """Its first moment, in seconds from the first frame."""
    end: float
    """Its end, in seconds."""
    label: str
    """Name of the class."""
    index: int
    """Its index among the labels."""
    score: float
    """Mean probability of the class from start to end."""
    peak: float
    """When the class is the most probable, in seconds."""

    def to_dict(self) -> dict[str, Any]:
        """Return its JSON form; times are rounded to milliseconds."""
        times = {name: round(getattr(self, name), 3) for name in ("start", "end", "peak")}
        return {"start": times["start"], "end": times["end"], "label": self.label, "index": self.index, "score": self.score} | {
            "peak": times["peak"]
        }


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What happens when in a video."""

    video: str
    """The file or folder, as it was named."""
    seconds: float
    """Its duration."""
    frames: int
    """Its frames."""
    fps: float
    """Its average frames per second."""
    options: TimelineOptions
    """How it was made."""
    model: str
    """The model's name."""
    target: str
    """Library that ran it."""
    precision: str
    """Precision that it computed in."""
    labels: tuple[str, ...] = field(repr=False)
    """The model's labels."""
    windows: tuple[Window, ...] = field(repr=False)
    """The windows that were scored, in their order."""
    scores: NDArray[np.float32] = field(repr=False, compare=False)
    """float32 `[windows, classes]`: the network's scores of each window, averaged over its views."""
    segments: tuple[Segment, ...] = ()
    """One label at a time, in their order."""
    detections: tuple[Segment, ...] = ()
    """Each label's segments on their own, the highest score first; empty where `options.detections` is False."""
    warnings: tuple[str, ...] = ()
    """What is missing from the video, or odd about the options."""
    error: str = ""
    """Why the video could not be read to its end; empty where it was."""
    elapsed: float = 0.0
    """Seconds that decoding and scoring took."""

    @property
    def steps(self) -> Steps:
        """Probabilities over time: of each step, the mean over the windows that cover it."""
        return steps_of([item.start for item in self.windows], [item.end for item in self.windows], softmax(self.scores))

    def to_dict(self, *, scores: bool = False) -> dict[str, Any]:
        """Return the JSON form of `flowless timeline`; with `scores`, every window's probabilities too."""
        options = self.options
        document: dict[str, Any] = {
            "video": self.video,
            "seconds": round(self.seconds, 3),
            "frames": self.frames,
            "fps": round(self.fps, 3),
            "window": options.window,
            "stride": options.stride,
            "model": self.model,
            "target": self.target,
            "precision": self.precision,
            "threshold": options.threshold,
            "background": list(options.background),
            "merge": options.merge,
            "shortest": options.shortest,
            "windows": len(self.windows),
            "scored_to": round(self.windows[-1].end, 3),
            "elapsed": round(self.elapsed, 3),
            "segments": [item.to_dict() for item in self.segments],
        }
        if options.detections:
            document |= {"nms": options.nms, "detections": [item.to_dict() for item in self.detections]}
        if scores:
            rows = softmax(self.scores).tolist()
            document["scores"] = {
                "labels": list(self.labels),
                "windows": [
                    {"start": round(item.start, 3), "end": round(item.end, 3), "first": item.first, "last": item.last, "probabilities": row}
                    for item, row in zip(self.windows, rows, strict=True)
                ],
            }
        if self.warnings:
            document["warnings"] = list(self.warnings)
        return document | ({"error": self.error} if self.error else {})


def timeline(
    engine: Engine,
    path: str | os.PathLike[str],
    options: TimelineOptions | None = None,
    *,
    progress: Progress | None = None,
    see: SeeTime | None = None,
) -> Timeline:
    """Find what happens when in a video.

    A window slides over the video; each is scored as `engine.predict` scores a video of that part alone. Every frame is decoded
    once, in a thread, while the engine runs, and the memory does not grow with the video's length. (Where a file's packets do not
    say how many frames it has, all are decoded once before, to count them.)

    Args:
        engine: What `flowless.load` returned.
        path: A video file or a folder of numbered pictures.
        options: Windows and segments; None: the defaults.
        progress: Called after every window.
        see: Called with every frame that is decoded, in the decoding thread.

    Returns:
        The timeline; where a frame is damaged, of what comes before it, with its `error`.

    Raises:
        FlowlessError: The video cannot be opened, its first window cannot be read, or an option does not fit the video or the model.
    """
    from flowless.pipeline.video.open_reader import open_reader

    chosen = options or TimelineOptions()
    background = label_indices(engine, chosen.background)
    started = time.perf_counter()
    with open_reader(path, threads=usable_cores(), rate=chosen.rate) as video:
        windows, rows, error = _scored(engine, video, chosen, progress, None if see is None else _with_times(video.info, see))
        info = video.info
    made = Timeline(
        video=os.fspath(path),
        seconds=info.seconds,
        frames=info.frames,
        fps=info.fps,
        options=chosen,
        model=engine.model,
        target=engine.target,
        precision=engine.precision,
        labels=tuple(engine.labels),
        windows=tuple(windows),
        scores=np.stack(rows),
        warnings=_warnings(info, chosen),
        error=error,
        elapsed=time.perf_counter() - started,
    )
    return with_segments(made, background)


def label_indices(engine: Engine, names: Sequence[str]) -> list[int]:
    """Return the indices of labels; raise FlowlessError for one that the model does not have."""
    unknown = [name for name in names if name not in engine.labels]
    if unknown:
        known = ", ".join(engine.labels[:20]) + (", …" if len(engine.labels) > 20 else "")
        raise FlowlessError(f"timeline: background is {unknown[0]!r}, and the model has no such label. Its labels: {known}.")
    return [engine.labels.index(name) for name in names]


def with_segments(made: Timeline, background: Sequence[int]) -> Timeline:
    """Return a timeline with the segments of its scores."""
    options, steps = made.options, made.steps
    shared = {"threshold": options.threshold, "background": background, "merge": options.merge, "shortest": options.shortest}
    detections = class_segments(steps, nms=options.nms, **shared) if options.detections else []
    found = [
        tuple(Segment(label=made.labels[span.index], **asdict(span)) for span in spans)
        for spans in (best_segments(steps, **shared), detections)
    ]
    return replace(made, segments=found[0], detections=found[1])


def _with_times(info: VideoInfo, see: SeeTime) -> See:
    stamps = np.asarray(info.pts) if info.pts else np.zeros(info.frames, np.int64)
    times = (stamps - stamps[0]) * float(info.time_base)
    return lambda ordinal, frame: see(float(times[ordinal]), frame)


def _scored(
    engine: Engine,
    video: VideoReader | FrameFolder,
    options: TimelineOptions,
    progress: Progress | None,
    see: See | None,
) -> tuple[list[Window], list[NDArray[np.float32]], str]:
    """Return the windows that could be scored, their scores, and why the others could not."""
    from flowless.pipeline.video.reader import FewerFrames

    windows = plan_windows(video.path, video.info, window=options.window, stride=options.stride)
    rows: list[NDArray[np.float32]] = []
    while True:
        try:
            with closing(score_windows(engine, video, windows[len(rows) :], see=see)) as scored:
                for row in scored:
                    rows.append(row)
                    if progress is not None:
                        progress(len(rows), len(windows))
            return windows, rows, ""
        except FewerFrames:
            # The windows before the end stay as they are; the last ones are those of the frames that decode.
            try:
                again = plan_windows(video.path, video.prove(), window=options.window, stride=options.stride)
            except FlowlessError as damage:
                return _before(windows, rows, damage)
            same = next((at for at, pair in enumerate(zip(windows, again, strict=False)) if pair[0] != pair[1]), len(again))
            windows, rows = again, rows[:same]
        except FlowlessError as damage:
            return _before(windows, rows, damage)


def _before(
    windows: list[Window], rows: list[NDArray[np.float32]], damage: FlowlessError
) -> tuple[list[Window], list[NDArray[np.float32]], str]:
    """Return what was scored before a frame that cannot be decoded; raise its error where that is nothing."""
    if not rows:
        raise damage
    return windows[: len(rows)], rows, str(damage)


def _warnings(info: VideoInfo, options: TimelineOptions) -> tuple[str, ...]:
    found = [info.gaps] if info.gaps else []
    if options.window > info.seconds:
        found.append(f"the video is shorter than a window, {options.window:g} s: it is one window of {info.seconds:.3g} s")
    elif options.stride > options.window:
        found.append(
            f"the stride, {options.stride:g} s, is longer than the window, {options.window:g} s: what lies between windows is not scored"
        )
    return tuple(found)

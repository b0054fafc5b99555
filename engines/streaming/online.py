"""Online recognition: one frame in, one answer out, from a memory of the frames before it.

Wang et al., Learning SpatioTemporal and Motion Features in a Unified 2D Network for Action Recognition, section 4.6: "we keep a
memory cache to store the historical seven frames. When recognizing a specific frame, we combine it with the stored frames".
The network is the offline one. The memory holds pictures and not features: what a segment's features are depends on the segments
before and after it, all of which move one place on with every frame. (The layers before the first that mixes segments are the
exception: of a ResNet its first convolution, 3 % of the arithmetic, whose features are five times a picture's size.) An online
engine takes and gives the memory itself; around an offline one it is kept here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowless.engines.engine import Engine, Label, Prediction, likeliest
from flowless.engines.streaming.memory import first_memory, refuse_several_frames
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.clip.view_scores import ViewAverage, average_views

if TYPE_CHECKING:
    from flowless.pipeline.video.frame_folder import FrameFolder
    from flowless.pipeline.video.reader import VideoReader


class Online:
    """An engine that is shown a film frame by frame. For one film and one thread; make another for another film.

    The clip that the engine sees ends in the newest frame: its N segments are the last N frames that were pushed, the oldest
    first. Before N frames are there, the first one stands for those before it, as if the film had stood still until it began
    (the paper does not say). A spec of three crops scores all three. Crops and moments are averaged as the spec averages views.

    Args:
        engine: Any engine whose clip is N segments of one frame, such as STM, TSM or TSN, online or not.

    Raises:
        FlowlessError: The engine's segments have more than one frame.
    """

    def __init__(self, engine: Engine) -> None:
        # Here, and not with the module: whoever has arrays needs no PyAV, which this brings; and not within the first frame's time.
        from flowless.pipeline.clip.preprocess import resize_and_crop

        self._resize = resize_and_crop
        refuse_several_frames(engine.model, engine.spec)
        self.engine = engine
        self._memory: NDArray[np.uint8] | None = None
        self._moments = ViewAverage(engine.spec.average)

    @property
    def frames(self) -> int:
        """Number of frames pushed so far."""
        return self._moments.count

    def push(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See one more frame.

        Args:
            frame: uint8 `[H, W, 3]`, RGB, upright, of any size: it is resized and cropped once, by the engine's ClipSpec.

        Returns:
            float32 `[classes]`: the network's scores of this moment, before any softmax.

        Raises:
            FlowlessError: The frame has another type or shape; the memory is as it was.
        """
        return self.see(self.picture(frame))

    def picture(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what the engine sees of a frame, uint8 `[crops, height, width, 3]`: what `see` takes, so that it can be timed."""
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            kind = list(frame.shape) if isinstance(frame, np.ndarray) else type(frame).__name__
            raise FlowlessError(f"the frame is {kind}; it must be one picture, uint8 [H, W, 3], RGB.")
        return self._resize(frame[None], self.engine.spec)

    def see(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Do what `push` does, with what `picture` made of the frame."""
        memory = first_memory(picture, self.engine.spec.segments) if self._memory is None else self._memory
        each, self._memory = self.engine.step(picture, memory)
        scores = average_views(each, self.engine.spec.average)
        self._moments.add(scores[None])
        return scores

    @property
    def average(self) -> NDArray[np.float32]:
        """The average of all moments' scores so far, float32 `[classes]`: the film's own scores, once it has ended.

        Raises:
            FlowlessError: No frame has been pushed yet.
        """
        if not self.frames:
            raise FlowlessError("no frame has been pushed yet, so there is no average.")
        return self._moments.scores


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What an engine thought when a frame came."""

    frame: int
    """The frame's ordinal in the film, from 0."""
    now: Label
    """Likeliest class by this moment's scores."""
    so_far: Label
    """Likeliest class by the average of all scores so far."""
    seconds: float
    """From the decoded frame to its scores: resizing and engine."""


@dataclass(frozen=True, kw_only=True)
class OnlinePrediction(Prediction):
    """A film seen frame by frame; `top` and `scores` are those of the average."""

    moments: tuple[Moment, ...] = ()
    """Every frame that was seen."""

    def to_dict(self) -> dict:
        """Return the JSON form of `flowless predict --online --json`."""
        document = super().to_dict()
        if self.error is None:
            document["moments"] = [
                {
                    "frame": item.frame,
                    "label": item.now.label,
                    "score": item.now.score,
                    "so_far": item.so_far.label,
                    "seconds": item.seconds,
                }
                for item in self.moments
            ]
        return document


def predict_online(engine: Engine, path: str | os.PathLike[str], *, top: int = 5, every: int = 1) -> OnlinePrediction:
    """Show a video to an engine frame by frame, as a camera would.

    Args:
        engine: See `Online`.
        path: The video.
        top: Number of classes to name.
        every: Show every so manieth frame. The engine learnt from frames a segment apart; with 1, neighbours are as near in time as
            they can be (the paper does not say which frames it takes).

    Raises:
        FlowlessError: The video cannot be read, has no frame, or the engine is not one for single frames.
    """
    if every < 1 or top < 1:
        raise FlowlessError(f"every is {every} and top {top}; both must be at least 1.")
    online, moments = Online(engine), []
    spent = {"decode": 0.0, "preprocess": 0.0, "engine": 0.0}
    from flowless.pipeline.video.open_reader import open_reader  # here: whoever has arrays needs no PyAV

    opening = time.perf_counter()
    with open_reader(path, threads=usable_cores()) as video, closing(_timed_frames(video, every, spent)) as frames:
        gaps = video.info.gaps
        spent["decode"] += time.perf_counter() - opening
        for ordinal, frame in frames:
            started = time.perf_counter()
            picture = online.picture(frame)
            resized = time.perf_counter()
            scores = online.see(picture)
            ended = time.perf_counter()
            spent["preprocess"] += resized - started
            spent["engine"] += ended - resized
            (now,), (so_far,) = (likeliest(some, engine.labels, 1) for some in (scores, online.average))
            moments.append(Moment(frame=ordinal, now=now, so_far=so_far, seconds=ended - started))
    return OnlinePrediction(
        video=os.fspath(path),
        top=likeliest(online.average, engine.labels, top),
        scores=online.average,
        target=engine.target,
        precision=engine.precision,
        seconds=spent,
        moments=tuple(moments),
        warning=gaps,
    )


def _timed_frames(
    video: VideoReader | FrameFolder, every: int, spent: dict[str, float]
) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    """Yield every so manieth frame with its ordinal; add what decoding took to `spent`."""
    started = time.perf_counter()
    for ordinal, frame in enumerate(video):
        if ordinal % every == 0:
            spent["decode"] += time.perf_counter() - started
            yield ordinal, frame
            started = time.perf_counter()
    spent["decode"] += time.perf_counter() - started

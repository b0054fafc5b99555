"""Online recognition: scores for every frame of a stream, from the frame and a memory of the frames before it.

Wang et al., Learning SpatioTemporal and Motion Features in a Unified 2D Network for Action Recognition, section 4.6: "we keep a
memory cache to store the historical seven frames. When recognizing a specific frame, we combine it with the stored frames".
The network is the offline one. The memory holds frames and not features: a segment's features depend on the segments before and after it,
all of which move on by one with every frame. (The layers before the first that mixes segments are the exception: in a ResNet the first
convolution, 3 % of the arithmetic, whose features are five times a frame's size.) The stream keeps the frames, for an online engine as for
an offline one.
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
from flowless.engines.streaming.stream import Stream, StreamOptions, step
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.clip.view_scores import ViewAverage

if TYPE_CHECKING:
    from flowless.pipeline.video.frame_folder import FrameFolder
    from flowless.pipeline.video.reader import VideoReader


class Online:
    """A stream that an engine recognises frame by frame. For one stream and one thread; create another for another stream.

    The clip that the engine scores ends in the newest frame: its N segments are the last N frames that were pushed, the oldest
    first. Before N frames were pushed, the missing ones are copies of the first frame (the paper does not say). A spec with three crops
    scores all three. Crops and frames are averaged as the spec averages views.

    Args:
        engine: Any engine whose clip is N segments of one frame, such as STM, TSM or TSN, online or not; or one that carries a state.

    Raises:
        FlowlessError: The engine carries no state, and its segments have more than one frame.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._stream = Stream(engine, StreamOptions(mode="online"))
        self._moments = ViewAverage(engine.spec.average)

    @property
    def frames(self) -> int:
        """Number of frames pushed so far."""
        return self._moments.count

    def push(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score the next frame.

        Args:
            frame: uint8 `[H, W, 3]`, RGB, upright, of any size: it is resized and cropped once, by the engine's ClipSpec.

        Returns:
            float32 `[classes]`: the network's scores at this frame, before any softmax.

        Raises:
            FlowlessError: The frame has another type or shape; the memory is unchanged.
        """
        return self.see(self.picture(frame))

    def picture(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a frame resized and cropped, uint8 `[crops, height, width, 3]`, for `see`; separate so that it can be timed."""
        return self._stream.prepare(frame)

    def see(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score the next frame, resized and cropped by `picture`."""
        self._stream.put(picture, 0)
        (scores,) = step(self.engine, [self._stream])
        assert scores is not None
        self._moments.add(scores[None])
        return scores

    @property
    def average(self) -> NDArray[np.float32]:
        """The average of the scores of all frames so far, float32 `[classes]`; at the end of a video, the video's scores.

        Raises:
            FlowlessError: No frame has been pushed yet.
        """
        if not self.frames:
            raise FlowlessError("no frame has been pushed yet, so there is no average.")
        return self._moments.scores


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The prediction at one frame."""

    frame: int
    """The frame's ordinal in the video, from 0."""
    now: Label
    """Most likely class by the scores at this frame."""
    so_far: Label
    """Most likely class by the average of the scores so far."""
    seconds: float
    """From the decoded frame to its scores: resizing and engine."""


@dataclass(frozen=True, kw_only=True)
class OnlinePrediction(Prediction):
    """The prediction for a video that was fed frame by frame; `top` and `scores` are those of the average."""

    moments: tuple[Moment, ...] = ()
    """The predictions at every frame that was fed."""

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
    """Feed a video to an engine frame by frame, as a camera would.

    Args:
        engine: See `Online`.
        path: The video.
        top: Number of classes to name.
        every: Feed every n-th frame. The model was trained on frames one segment apart; with 1, neighbouring frames are as close in time
            as possible (the paper does not say which frames it takes).

    Raises:
        FlowlessError: The video cannot be read, has no frame, or the engine takes several frames per segment.
    """
    if every < 1 or top < 1:
        raise FlowlessError(f"every is {every} and top {top}; both must be at least 1.")
    online, moments = Online(engine), []
    spent = {"decode": 0.0, "preprocess": 0.0, "engine": 0.0}
    from flowless.pipeline.video.open_reader import open_reader  # here, because it needs PyAV

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
    """Yield every n-th frame with its ordinal; add the time of decoding to `spent`."""
    started = time.perf_counter()
    for ordinal, frame in enumerate(video):
        if ordinal % every == 0:
            spent["decode"] += time.perf_counter() - started
            yield ordinal, frame
            started = time.perf_counter()
    spent["decode"] += time.perf_counter() - started

"""Sliding windows over a video: which frames each has, and their views, for which every frame is decoded and resized once."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.files import printable
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import ClipSpec

if TYPE_CHECKING:
    from flowless.pipeline.clip.preprocess import ClipViews, ResizedFrame
    from flowless.pipeline.video.frame_folder import FrameFolder
    from flowless.pipeline.video.info import VideoInfo
    from flowless.pipeline.video.reader import VideoReader


#: Called with the ordinal and the pixels uint8 `[H, W, 3]` of a frame.
See = Callable[[int, NDArray[np.uint8]], None]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a video."""

    start: float
    """Its first moment, in seconds from the first frame."""
    end: float
    """Its end, in seconds from the first frame."""
    first: int
    """Ordinal of its first frame: the first that is displayed at `start` or later."""
    last: int
    """Ordinal after that of its last frame."""


def plan_windows(path: str, info: VideoInfo, *, window: float, stride: float) -> list[Window]:
    """Return the windows of a video in their order.

    They begin every `stride` seconds; one more ends with the video where the last does not. A video that is shorter than a window is one
    window. Frames are found by their time stamps (`VideoInfo.frame_at`), so a variable rate is no matter; a window in which no frame
    begins, in a gap of such a video, is left out.

    Args:
        path: The video's name, for messages.
        info: Its properties.
        window: Seconds of a window.
        stride: Seconds from one window's start to the next one's.

    Raises:
        FlowlessError: The window or the stride is shorter than a frame, or the video's frames have no times.
    """
    if info.frames == 1:
        return [Window(start=0.0, end=info.seconds, first=0, last=1)]
    if not info.pts:
        why = "its pictures have no frame rate. Pass it with --rate" if info.folder else "its frames have no time stamps. Convert it to MP4"
        raise FlowlessError(f"{printable(path)}: it has no timeline, since {why}.")
    frame = 1 / info.fps
    for name, value in (("window", window), ("stride", stride)):
        if value < 0.999 * frame:
            raise FlowlessError(
                f"{printable(path)}: a {name} of {value:g} s is shorter than a frame, {frame:.3g} s at {info.fps:.4g} frames per second. "
                f"Take a longer one: --{name} {max(2 * frame, 0.5):.2g}"
            )
    whole = info.seconds
    # A window that ends less than half a frame after the video is complete.
    count = 1 + max(0, math.floor((whole - window + frame / 2) / stride))
    spans = [(at * stride, min(at * stride + window, whole)) for at in range(count)]
    if spans[-1][1] < whole - frame / 2:
        spans.append((whole - window, whole))
    firsts, lasts = (info.frames_at([span[edge] for span in spans]) for edge in (0, 1))
    return [
        Window(start=start, end=end, first=first, last=last)
        for (start, end), first, last in zip(spans, firsts, lasts, strict=True)
        if last > first
    ]


def frames_of(window: Window, spec: ClipSpec) -> NDArray[np.int64]:
    """Return the ordinals of a window's views, int64 `[clips, N, m]`: the sampling of the part as if it were a video of its own."""
    return window.first + _indices(window.last - window.first, spec)


@lru_cache(maxsize=256)
def _indices(frames: int, spec: ClipSpec) -> NDArray[np.int64]:
    return clip_indices(frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)


def window_views(
    video: VideoReader | FrameFolder,
    spec: ClipSpec,
    windows: Sequence[Window],
    *,
    see: See | None = None,
) -> Generator[ClipViews, None, None]:
    """Yield each window's views, which are those of `load_views` for its part of the video.

    The frames that any window needs are decoded once, in their order, and resized; a resized frame is kept until the last window
    that needs it has been yielded, so the memory depends on a window's frames and not on the video's length.

    Args:
        video: An open video.
        spec: Definition of a view.
        windows: The windows, in the order of their starts.
        see: Called with every frame that is decoded.

    Raises:
        FlowlessError: A frame cannot be decoded; the windows before it have been yielded.
    """
    from flowless.pipeline.clip.preprocess import ClipViews, resize_frame

    last_use = {ordinal: number for number, window in enumerate(windows) for ordinal in np.unique(frames_of(window, spec)).tolist()}
    kept: dict[int, ResizedFrame] = {}
    number = 0
    with closing(video.frames(last_use)) as frames:
        for ordinal, frame in frames:
            kept[ordinal] = resize_frame(frame, spec)
            if see is not None:
                see(ordinal, frame)
            while number < len(windows) and (indices := frames_of(windows[number], spec)).max() <= ordinal:
                wanted, positions = np.unique(indices, return_inverse=True)
                yield ClipViews(spec, [kept[one] for one in wanted.tolist()], positions.reshape(indices.shape))
                for one in wanted.tolist():
                    if last_use[one] == number:
                        del kept[one]
                number += 1

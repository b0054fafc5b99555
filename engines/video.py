"""From a video file to the views that the engine sees, with the time that each part took."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flowless.pipeline.clip.spec import ClipSpec

if TYPE_CHECKING:
    from flowless.pipeline.clip.preprocess import ClipViews


@dataclass(frozen=True)
class TimedClip:
    """A video's views, and how long it took to make them."""

    views: ClipViews
    """The views, cut when they are asked for."""
    decode: float
    """Seconds of reading, decoding and conversion to RGB."""
    preprocess: float
    """Seconds of resizing; cutting the views comes on top."""
    gaps: str
    """What is missing of the video (`VideoInfo.gaps`)."""

    @property
    def clip(self) -> np.ndarray:
        """All views at once, uint8 `[views, N, m, H, W, 3]`."""
        return self.views.cut()


def timed_clip(path: str | os.PathLike[str], spec: ClipSpec) -> TimedClip:
    """Make the views that `flowless.pipeline.clip.preprocess.load_clip` makes, and time its parts.

    Raises:
        FlowlessError: The file cannot be read.
    """
    # PyAV is imported for a video alone: whoever has arrays needs none.
    from flowless.pipeline.clip.preprocess import load_views
    from flowless.pipeline.video.open_reader import open_reader

    started, resizing = time.perf_counter(), []
    with open_reader(path) as video:
        views = load_views(video, spec, resizing=resizing)
        gaps = video.info.gaps
    return TimedClip(views, time.perf_counter() - started - sum(resizing), sum(resizing), gaps)

"""The views of a video file that an engine scores, with the time that each step took."""

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
    """A video's views, and the time that making them took."""

    views: ClipViews
    """The views, which are cropped when they are read."""
    decode: float
    """Seconds of reading, decoding and conversion to RGB."""
    preprocess: float
    """Seconds of resizing, without cropping the views."""
    gaps: str
    """What is missing from the video (`VideoInfo.gaps`)."""

    @property
    def clip(self) -> np.ndarray:
        """All views at once, uint8 `[views, N, m, H, W, 3]`."""
        return self.views.cut()


def timed_clip(path: str | os.PathLike[str], spec: ClipSpec) -> TimedClip:
    """Make the same views as `flowless.pipeline.clip.preprocess.load_clip`, and time the steps.

    Raises:
        FlowlessError: The file cannot be read.
    """
    # Imported here because only video files need PyAV, arrays do not.
    from flowless.pipeline.clip.preprocess import load_views
    from flowless.pipeline.video.open_reader import open_reader

    started, resizing = time.perf_counter(), []
    with open_reader(path) as video:
        views = load_views(video, spec, resizing=resizing)
        gaps = video.info.gaps
    return TimedClip(views, time.perf_counter() - started - sum(resizing), sum(resizing), gaps)

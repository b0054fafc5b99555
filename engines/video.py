"""From a video file to the clip that the engine sees, with the time that each part took."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

from flowless.pipeline.preprocess import load_clip
from flowless.pipeline.spec import ClipSpec


@dataclass(frozen=True)
class TimedClip:
    """A clip, and how long it took to make."""

    clip: np.ndarray
    """uint8 `[views, N, m, H, W, 3]`."""
    decode: float
    """Seconds of reading, decoding and conversion to RGB."""
    preprocess: float
    """Seconds of resizing and cropping."""


def timed_clip(path: str | os.PathLike[str], spec: ClipSpec) -> TimedClip:
    """Make the clip that `flowless.pipeline.preprocess.load_clip` makes, and time its parts.

    Raises:
        FlowlessError: The file cannot be read.
    """
    started, resizing = time.perf_counter(), []
    clip = load_clip(path, spec, resizing=resizing)
    return TimedClip(clip, time.perf_counter() - started - sum(resizing), sum(resizing))

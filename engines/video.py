"""From a video file to the clip that the engine sees, with the time that each part took."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from flowless.pipeline.decode import read_frames
from flowless.pipeline.preprocess import resize_and_crop
from flowless.pipeline.probe import probe
from flowless.pipeline.sampling import clip_indices
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
    started = time.perf_counter()
    info = probe(path)
    indices = clip_indices(info.frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    wanted, places = np.unique(indices, return_inverse=True)
    small = np.empty((len(wanted), spec.height, spec.width, 3), np.uint8)
    resizing = 0.0
    with closing(read_frames(path, wanted.tolist(), info=info)) as frames:
        for ordinal, frame in frames:
            before = time.perf_counter()
            small[np.searchsorted(wanted, ordinal)] = resize_and_crop(frame[None], spec)[0]
            resizing += time.perf_counter() - before
    clip = small[places.reshape(indices.shape)]
    return TimedClip(clip, time.perf_counter() - started - resizing, resizing)

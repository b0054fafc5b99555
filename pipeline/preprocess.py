"""From decoded frames to the clip that the network sees: ClipSpec's one resize and crop rule, by Pillow."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowless.errors import FlowlessError
from flowless.pipeline.decode import read_frames
from flowless.pipeline.probe import VideoInfo, probe
from flowless.pipeline.sampling import clip_indices
from flowless.pipeline.spec import ClipSpec


def resized_size(width: int, height: int, *, short_side: int) -> tuple[int, int]:
    """Return `(width, height)` after resizing so that the short side is `short_side`; the long side rounds down."""
    short, long = min(width, height), max(width, height)
    if short == short_side:
        return width, height
    scaled = int(short_side * long / short)
    return (short_side, scaled) if width <= height else (scaled, short_side)


def crop_corner(width: int, height: int, spec: ClipSpec) -> tuple[int, int]:
    """Return `(left, top)` of the centre crop in a resized frame; halves round to even, as Python's `round` does."""
    return round((width - spec.width) / 2.0), round((height - spec.height) / 2.0)


def resize_and_crop(frames: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.uint8]:
    """Resize and crop frames by the rule of `ClipSpec`.

    Args:
        frames: uint8 `[K, H, W, 3]`, RGB, upright.
        spec: Says sizes; the filter is Pillow's BILINEAR, a triangle as wide as the scale.

    Returns:
        uint8 `[K, spec.height, spec.width, 3]`.

    Raises:
        FlowlessError: The frames are not of that shape and type, or have no pixels.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape[1:3]:
        raise FlowlessError(
            f"resize_and_crop: frames are {frames.dtype} {list(frames.shape)}; they must be uint8 [K, H, W, 3] with at least one pixel."
        )
    result = np.empty((len(frames), spec.height, spec.width, 3), np.uint8)
    for place, frame in enumerate(frames):
        result[place] = _one(frame, spec)
    return result


def load_clip(
    path: str | os.PathLike[str],
    spec: ClipSpec,
    *,
    first_frame: int = 0,
    num_frames: int | None = None,
    info: VideoInfo | None = None,
    threads: int = 1,
    resizing: list[float] | None = None,
) -> NDArray[np.uint8]:
    """Make the evaluation clip of a video, or of a part of one: sample, decode, resize, crop.

    Args:
        path: The file.
        spec: What a clip is; `spec.sampling` says which frames.
        first_frame: Presentation ordinal of the part's first frame.
        num_frames: Frames of the part; None means all to the end, which takes a look at the file.
        info: What `probe` said of this file, if it is known.
        threads: With more than one, frames are resized in that many threads while the next ones are decoded.
        resizing: Gets the seconds of each frame's resize and crop appended.

    Returns:
        uint8 `[views, N, m, H, W, 3]`, RGB.

    Raises:
        FlowlessError: The file cannot be read or has no such part.
    """
    if num_frames is None:
        info = info or probe(path)
        num_frames = info.frames - first_frame
    if num_frames < 1 or first_frame < 0:
        known = f"; the video has {info.frames} frames" if info else ""
        raise FlowlessError(f"{os.fspath(path)}: a part of {num_frames} frames from frame {first_frame} on was asked for{known}.")
    indices = first_frame + clip_indices(num_frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    wanted, places = np.unique(indices, return_inverse=True)
    small = np.empty((len(wanted), spec.height, spec.width, 3), np.uint8)

    def keep(ordinal: int, frame: NDArray[np.uint8]) -> None:
        started = time.perf_counter()
        small[np.searchsorted(wanted, ordinal)] = _one(frame, spec)
        if resizing is not None:
            resizing.append(time.perf_counter() - started)

    # Frame by frame: a clip of large frames never lies in memory at full size.
    with closing(read_frames(path, wanted.tolist(), info=info, threads=threads)) as frames:
        if threads > 1:
            _in_threads(keep, frames, threads)
        else:
            for ordinal, frame in frames:
                keep(ordinal, frame)
    return small[places.reshape(indices.shape)]


def _in_threads(keep: Callable[[int, NDArray[np.uint8]], None], frames: Iterable[tuple[int, NDArray[np.uint8]]], threads: int) -> None:
    """Call `keep` on every frame in threads (Pillow lets go of Python's lock), with a few frames waiting at most."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[None]] = deque()
        for ordinal, frame in frames:
            waiting.append(pool.submit(keep, ordinal, frame))
            if len(waiting) > 2 * threads:
                waiting.popleft().result()
        for future in waiting:
            future.result()


def _one(frame: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    size = resized_size(width, height, short_side=spec.short_side)
    left, top = crop_corner(*size, spec)
    if size == (width, height):
        return frame[top : top + spec.height, left : left + spec.width]
    resized = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
    return resized[top : top + spec.height, left : left + spec.width]

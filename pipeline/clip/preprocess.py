"""Preprocessing for evaluation: sample, decode, resize and crop a video's frames into the views of a ClipSpec, with Pillow."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowless.errors import FlowlessError
from flowless.files import printable
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import CROPS, ClipSpec
from flowless.pipeline.video.frame_folder import FrameFolder
from flowless.pipeline.video.open_reader import open_reader
from flowless.pipeline.video.reader import FewerFrames, VideoReader

if TYPE_CHECKING:
    from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord


def resized_size(width: int, height: int, *, short_side: int) -> tuple[int, int]:
    """Return `(width, height)` after resizing the short side to `short_side`; the long side is rounded down."""
    short, long = min(width, height), max(width, height)
    if short == short_side:
        return width, height
    scaled = int(short_side * long / short)
    return (short_side, scaled) if width <= height else (scaled, short_side)


def crop_corners(width: int, height: int, spec: ClipSpec) -> tuple[tuple[int, int], ...]:
    """Return `(left, top)` of every crop in a resized frame, in the order of the views.

    Three crops lie at multiples of a quarter of the free length, rounded down, as in PAN's published code: both ends of the long side,
    then its middle. (The published code always goes from left to right, which on a portrait video gives one crop three times.)
    The corner of a centre crop is rounded half to even, as in the published code (Python's `round`).

    Args:
        width: Columns of the resized frame.
        height: Rows of the resized frame.
        spec: Defines the crop's size and rule.
    """
    rows, columns = spec.crop_size
    if spec.crop == "centre":
        return ((round((width - columns) / 2.0), round((height - rows) / 2.0)),)
    across, down = (width - columns) // 4, (height - rows) // 4
    if width >= height:
        return (0, 2 * down), (4 * across, 2 * down), (2 * across, 2 * down)
    return (2 * across, 0), (2 * across, 4 * down), (2 * across, 2 * down)


def resize_region(frame: NDArray[np.uint8], spec: ClipSpec, *, region: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """Resize a region of a frame to the network's input size; the filter also reads pixels beyond the region's edge.

    Args:
        frame: uint8 `[H, W, 3]`.
        spec: Defines the output size.
        region: Left, top, right and bottom edge in pixels of the frame; left > right mirrors.

    Returns:
        uint8 `[spec.height, spec.width, 3]`.
    """
    left, top, right, bottom = region
    height, width = frame.shape[:2]
    box = (max(min(left, right), 0.0), max(top, 0.0), min(max(left, right), width), min(bottom, height))
    resized = Image.fromarray(frame).resize((spec.width, spec.height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)[:, ::-1] if left > right else np.asarray(resized)


def resize_and_crop(frames: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.uint8]:
    """Resize and crop frames as `ClipSpec` defines.

    Args:
        frames: uint8 `[K, H, W, 3]`, RGB, upright.
        spec: Defines the sizes; the filter is Pillow's BILINEAR (antialiased: a triangle as wide as the scale).

    Returns:
        uint8 `[crops * K, spec.height, spec.width, 3]`: all frames of the first crop, then of the next.

    Raises:
        FlowlessError: The frames are not of that shape and type, or have no pixels.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape[1:3]:
        raise FlowlessError(
            f"resize_and_crop: frames are {frames.dtype} {list(frames.shape)}; they must be uint8 [K, H, W, 3] with at least one pixel."
        )
    result = np.empty((CROPS[spec.crop], len(frames), spec.height, spec.width, 3), np.uint8)
    for number, frame in enumerate(frames):
        resized = resize_frame(frame, spec)
        for crop in range(len(result)):
            result[crop, number] = resized.crop(crop, spec)
    return result.reshape(-1, spec.height, spec.width, 3)


@dataclass(frozen=True)
class ResizedFrame:
    """A resized frame, cut to the bounding box of its crops; or the crops side by side, where each is resized again."""

    pixels: NDArray[np.uint8]
    corners: tuple[tuple[int, int], ...]
    """`(left, top)` of each crop in `pixels`."""

    def crop(self, number: int, spec: ClipSpec) -> NDArray[np.uint8]:
        """Return a crop, uint8 `[spec.height, spec.width, 3]`."""
        left, top = self.corners[number]
        return self.pixels[top : top + spec.height, left : left + spec.width]


@dataclass(frozen=True, eq=False, repr=False)
class ClipViews:
    """The views of one video, kept as resized frames; `cut` copies the crops of a view out of them.

    Thirty views of 8 x 4 frames of 256 x 256 take 190 MB; the frames that they are cut from, at most 320 of 455 x 256, take 112 MB.
    """

    spec: ClipSpec
    """Definition of a view."""
    frames: list[ResizedFrame]
    """The distinct frames of all clips."""
    positions: NDArray[np.int64]
    """`[clips, N, m]`: for each frame of a clip, its position in `frames`."""

    def __len__(self) -> int:
        """Number of views: crops x clips."""
        return CROPS[self.spec.crop] * len(self.positions)

    def cut(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return views `[start:stop]`, uint8 `[views, N, m, H, W, 3]`; without arguments all of them."""
        wanted = range(len(self))[start:stop]
        clips = np.empty((len(wanted), *self.spec.shape), np.uint8)
        for clip, view in zip(clips, wanted, strict=True):
            crop, number = divmod(view, len(self.positions))
            for picture, position in zip(clip.reshape(-1, *clip.shape[2:]), self.positions[number].flat, strict=True):
                picture[:] = self.frames[position].crop(crop, self.spec)
        return clips

    def parts(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all views in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.cut(start, start + size)


def load_clip(
    path: str | os.PathLike[str],
    spec: ClipSpec,
    *,
    first_frame: int = 0,
    num_frames: int | None = None,
    threads: int = 1,
    resizing: list[float] | None = None,
) -> NDArray[np.uint8]:
    """Make the evaluation clip of a video, or of a part of one: sample, decode, resize, crop.

    Args:
        path: The file, or a folder of numbered pictures.
        spec: Definition of a clip.
        first_frame: Ordinal of the part's first frame.
        num_frames: Frames of the part; None means all to the end.
        threads: Threads that the codec may use; if more than 1, frames are also resized in that many threads while the next are decoded.
        resizing: A list to which the seconds of each frame's resize are appended.

    Returns:
        uint8 `[views, N, m, H, W, 3]`, RGB; views are ordered by crop, then by clip.

    Raises:
        FlowlessError: The file cannot be read or has no such part.
    """
    with open_reader(path, threads=threads) as video:
        return load_views(video, spec, first_frame=first_frame, num_frames=num_frames, threads=threads, resizing=resizing).cut()


def load_record(index: DatasetIndex, record: VideoRecord, spec: ClipSpec) -> NDArray[np.uint8]:
    """Make the evaluation clip of an index's video as `load_clip` does, with the properties that the index stores.

    Raises:
        FlowlessError: The file cannot be read, or no longer has that part.
    """
    with index.open(record) as video:
        return load_views(video, spec, first_frame=record.first_frame, num_frames=record.frames).cut()


def load_views(
    video: VideoReader | FrameFolder,
    spec: ClipSpec,
    *,
    first_frame: int = 0,
    num_frames: int | None = None,
    threads: int = 1,
    resizing: list[float] | None = None,
) -> ClipViews:
    """Make the evaluation views of an open video, or of a part of one: sample, decode and resize each frame once.

    Arguments and errors are those of `load_clip`.
    """
    if num_frames is None:
        num_frames = video.count - first_frame
        try:
            return load_views(video, spec, first_frame=first_frame, num_frames=num_frames, threads=threads, resizing=resizing)
        except FewerFrames:
            video.prove()
            num_frames = video.count - first_frame  # frames that decode, as a scan counts them
    if num_frames < 1 or first_frame < 0:
        raise FlowlessError(
            f"{printable(video.path)}: a part of {num_frames} frames from frame {first_frame} on was requested; "
            f"the video has {video.count} frames."
        )
    indices = first_frame + clip_indices(num_frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    wanted, positions = np.unique(indices, return_inverse=True)
    resized: dict[int, ResizedFrame] = {}

    def keep(ordinal: int, frame: NDArray[np.uint8]) -> None:
        started = time.perf_counter()
        resized[ordinal] = resize_frame(frame, spec)
        if resizing is not None:
            resizing.append(time.perf_counter() - started)

    # Frame by frame, so that a clip of large frames is never in memory at full size.
    with closing(video.frames(wanted.tolist())) as frames:
        if threads > 1:
            _in_threads(keep, frames, threads)
        else:
            for ordinal, frame in frames:
                keep(ordinal, frame)
    return ClipViews(spec, [resized[ordinal] for ordinal in wanted.tolist()], positions.reshape(indices.shape))


def _in_threads(keep: Callable[[int, NDArray[np.uint8]], None], frames: Iterable[tuple[int, NDArray[np.uint8]]], threads: int) -> None:
    """Call `keep` on every frame in threads (Pillow releases the GIL), with at most 2 * `threads` frames queued."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[None]] = deque()
        for ordinal, frame in frames:
            waiting.append(pool.submit(keep, ordinal, frame))
            if len(waiting) > 2 * threads:
                waiting.popleft().result()
        for future in waiting:
            future.result()


def resize_frame(frame: NDArray[np.uint8], spec: ClipSpec) -> ResizedFrame:
    """Resize a frame uint8 `[H, W, 3]` and cut it to what the crops of `spec` need."""
    height, width = frame.shape[:2]
    size = resized_size(width, height, short_side=spec.short_side)
    corners = crop_corners(*size, spec)
    (left, right), (top, bottom) = ((min(edges), max(edges)) for edges in zip(*corners, strict=True))
    resized = frame if size == (width, height) else np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
    if spec.crop_side is not None:
        return _resize_crops(resized, corners, spec)
    # A copy, so that the rest of the frame is freed.
    pixels = resized[top : bottom + spec.height, left : right + spec.width].copy()
    return ResizedFrame(pixels, tuple((x - left, y - top) for x, y in corners))


def _resize_crops(resized: NDArray[np.uint8], corners: tuple[tuple[int, int], ...], spec: ClipSpec) -> ResizedFrame:
    """Cut crops of `spec.crop_side` and resize each separately, so that the filter does not read beyond a crop's edge."""
    image, (rows, columns), size = Image.fromarray(resized), spec.crop_size, (spec.width, spec.height)
    crops = [image.crop((x, y, x + columns, y + rows)).resize(size, Image.Resampling.BILINEAR) for x, y in corners]
    return ResizedFrame(
        np.concatenate([np.asarray(crop) for crop in crops], axis=1), tuple((at * spec.width, 0) for at in range(len(crops)))
    )

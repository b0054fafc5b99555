"""From decoded frames to the views that the network sees: ClipSpec's one resize and crop rule, by Pillow."""

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
    """Return `(width, height)` after resizing so that the short side is `short_side`; the long side rounds down."""
    short, long = min(width, height), max(width, height)
    if short == short_side:
        return width, height
    scaled = int(short_side * long / short)
    return (short_side, scaled) if width <= height else (scaled, short_side)


def crop_corners(width: int, height: int, spec: ClipSpec) -> tuple[tuple[int, int], ...]:
    """Return `(left, top)` of every crop in a resized frame, in the order of the views.

    Three crops lie at whole quarter steps, as in PAN's published code: both ends of the frame, then its middle. They follow
    the long side. (The published code always goes from left to right, which on a portrait video gives one crop three times.)
    Of a centre crop halves round to even, as Python's `round` does and the published code relies on.

    Args:
        width: Columns of the resized frame.
        height: Rows of the resized frame.
        spec: Says the crop's size and rule.
    """
    rows, columns = spec.crop_size
    if spec.crop == "centre":
        return ((round((width - columns) / 2.0), round((height - rows) / 2.0)),)
    across, down = (width - columns) // 4, (height - rows) // 4
    if width >= height:
        return (0, 2 * down), (4 * across, 2 * down), (2 * across, 2 * down)
    return (2 * across, 0), (2 * across, 4 * down), (2 * across, 2 * down)


def resize_part(frame: NDArray[np.uint8], spec: ClipSpec, *, part: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """Resize a part of a frame to the network's picture, by the filter of `ClipSpec`; it may reach over the part's edge.

    Args:
        frame: uint8 `[H, W, 3]`.
        spec: Says the picture's size.
        part: Left, top, right and bottom edge, in pixels of the frame; left after right mirrors.

    Returns:
        uint8 `[spec.height, spec.width, 3]`.
    """
    left, top, right, bottom = part
    height, width = frame.shape[:2]
    box = (max(min(left, right), 0.0), max(top, 0.0), min(max(left, right), width), min(bottom, height))
    resized = Image.fromarray(frame).resize((spec.width, spec.height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)[:, ::-1] if left > right else np.asarray(resized)


def resize_and_crop(frames: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.uint8]:
    """Resize and crop frames by the rule of `ClipSpec`.

    Args:
        frames: uint8 `[K, H, W, 3]`, RGB, upright.
        spec: Says sizes; the filter is Pillow's BILINEAR, a triangle as wide as the scale.

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
    for place, frame in enumerate(frames):
        small = _small(frame, spec)
        for crop in range(len(result)):
            result[crop, place] = small.crop(crop, spec)
    return result.reshape(-1, spec.height, spec.width, 3)


@dataclass(frozen=True)
class _Small:
    """A resized frame, cut to the part that its crops share; or its crops side by side, where they are resized again."""

    pixels: NDArray[np.uint8]
    corners: tuple[tuple[int, int], ...]
    """`(left, top)` of each crop in `pixels`."""

    def crop(self, number: int, spec: ClipSpec) -> NDArray[np.uint8]:
        left, top = self.corners[number]
        return self.pixels[top : top + spec.height, left : left + spec.width]


@dataclass(frozen=True, eq=False, repr=False)
class ClipViews:
    """The views of one video. Its frames are decoded and resized; views are cut from them only when they are asked for.

    Thirty views of 8 x 4 frames of 256 x 256 are 190 MB; the frames that they are cut from, at most 320 of 455 x 256, 112 MB.
    """

    spec: ClipSpec
    """What a view is."""
    frames: list[_Small]
    """The different frames of all clips, each once."""
    places: NDArray[np.int64]
    """`[clips, N, m]`: for each picture of a clip, its place in `frames`."""

    def __len__(self) -> int:
        """Number of views: crops x clips."""
        return CROPS[self.spec.crop] * len(self.places)

    def cut(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the views from `start` to before `stop`, uint8 `[views, N, m, H, W, 3]`; without arguments all of them."""
        wanted = range(len(self))[start:stop]
        clips = np.empty((len(wanted), *self.spec.shape), np.uint8)
        for clip, view in zip(clips, wanted, strict=True):
            crop, number = divmod(view, len(self.places))
            for picture, place in zip(clip.reshape(-1, *clip.shape[2:]), self.places[number].flat, strict=True):
                picture[:] = self.frames[place].crop(crop, self.spec)
        return clips

    def parts(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all views in their order, at most `size` at a time."""
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
    """Make the evaluation clip of a video, or of a part of one: sample, decode, resize, crop; all views at once.

    Args:
        path: The file, or a folder of numbered pictures.
        spec: What a clip is; `spec.sampling` says which frames, `spec.crop` where they are cropped.
        first_frame: Ordinal of the part's first frame.
        num_frames: Frames of the part; None means all to the end.
        threads: Threads that the codec may use; with more than one, frames are resized in that many threads while the next are decoded.
        resizing: Gets the seconds of each frame's resize appended.

    Returns:
        uint8 `[views, N, m, H, W, 3]`, RGB; crops outside, clips inside.

    Raises:
        FlowlessError: The file cannot be read or has no such part.
    """
    with open_reader(path, threads=threads) as video:
        return load_views(video, spec, first_frame=first_frame, num_frames=num_frames, threads=threads, resizing=resizing).cut()


def load_record(index: DatasetIndex, record: VideoRecord, spec: ClipSpec) -> NDArray[np.uint8]:
    """Make the evaluation clip of an index's video, as `load_clip` does, by what the index knows of the file.

    Raises:
        FlowlessError: The file cannot be read, or has no such part any more.
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

    The other arguments and the errors are those of `load_clip`.

    Returns:
        The views; nothing is cut yet.
    """
    if num_frames is None:
        num_frames = video.count - first_frame
        try:
            return load_views(video, spec, first_frame=first_frame, num_frames=num_frames, threads=threads, resizing=resizing)
        except FewerFrames:
            video.prove()
            num_frames = video.count - first_frame  # as a scan counts them: what decodes
    if num_frames < 1 or first_frame < 0:
        raise FlowlessError(
            f"{printable(video.path)}: a part of {num_frames} frames from frame {first_frame} on was asked for; "
            f"the video has {video.count} frames."
        )
    indices = first_frame + clip_indices(num_frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    wanted, places = np.unique(indices, return_inverse=True)
    small: dict[int, _Small] = {}

    def keep(ordinal: int, frame: NDArray[np.uint8]) -> None:
        started = time.perf_counter()
        small[ordinal] = _small(frame, spec)
        if resizing is not None:
            resizing.append(time.perf_counter() - started)

    # Frame by frame: a clip of large frames never lies in memory at full size.
    with closing(video.frames(wanted.tolist())) as frames:
        if threads > 1:
            _in_threads(keep, frames, threads)
        else:
            for ordinal, frame in frames:
                keep(ordinal, frame)
    return ClipViews(spec, [small[ordinal] for ordinal in wanted.tolist()], places.reshape(indices.shape))


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


def _small(frame: NDArray[np.uint8], spec: ClipSpec) -> _Small:
    height, width = frame.shape[:2]
    size = resized_size(width, height, short_side=spec.short_side)
    corners = crop_corners(*size, spec)
    (left, right), (top, bottom) = ((min(edges), max(edges)) for edges in zip(*corners, strict=True))
    resized = frame if size == (width, height) else np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
    if spec.crop_side is not None:
        return _resized_again(resized, corners, spec)
    # A copy, so that what is cut away does not stay in memory.
    pixels = resized[top : bottom + spec.height, left : right + spec.width].copy()
    return _Small(pixels, tuple((x - left, y - top) for x, y in corners))


def _resized_again(resized: NDArray[np.uint8], corners: tuple[tuple[int, int], ...], spec: ClipSpec) -> _Small:
    """Cut the crops of `spec.crop_side` and resize them, each by itself: the filter does not reach over a crop's edge."""
    image, (rows, columns), size = Image.fromarray(resized), spec.crop_size, (spec.width, spec.height)
    crops = [image.crop((x, y, x + columns, y + rows)).resize(size, Image.Resampling.BILINEAR) for x, y in corners]
    return _Small(np.concatenate([np.asarray(crop) for crop in crops], axis=1), tuple((at * spec.width, 0) for at in range(len(crops))))

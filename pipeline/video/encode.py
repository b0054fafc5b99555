"""Encodes frames to a video file, for generated data and for tests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.files import DISK_FULL, whole_file

#: Encoder -> options needed for deterministic output: on processors with AVX-512, the rounding of x264's macroblock tree depends on the
#: memory alignment of its buffers.
_DETERMINISTIC = {"libx264": {"x264-params": "mbtree=0"}}


@contextmanager
def _keep_scheduling() -> Iterator[None]:
    """Restore the thread's scheduling policy: as root SVT-AV1 makes the calling thread real-time (SCHED_FIFO 99), and keeps it so."""
    before = _scheduling()
    try:
        yield
    finally:
        if before is not None and _scheduling() != before:
            os.sched_setscheduler(0, *before)


def _scheduling() -> tuple[int, os.sched_param] | None:
    """Return the calling thread's scheduling policy and parameters; None where the system does not report them."""
    try:
        return os.sched_getscheduler(0), os.sched_getparam(0)
    except (AttributeError, OSError):  # macOS and Windows lack the functions; on musl they exist and fail
        return None


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: int | Fraction = 25,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
    pixel_format: str = "yuv420p",
    timestamps: Iterable[int] | None = None,
    rotation: int = 0,
) -> None:
    """Encode frames to a file; its suffix selects the container. The same frames give the same bytes.

    Args:
        path: The file to write, atomically.
        frames: uint8 `[H, W, 3]` each, RGB, all of one size; at least one.
        fps: Frames per second.
        codec: FFmpeg's name of an encoder, such as `libx264`, `libx265`, `libvpx-vp9`, `libsvtav1`, `mpeg4`.
        options: The encoder's own options, such as `{"crf": "18", "bf": "3", "g": "30"}`.
        pixel_format: FFmpeg's name of the stored pixels' format, such as `yuv420p10le`.
        timestamps: Ascending times in milliseconds, one a frame, for a variable rate; None means `fps`.
        rotation: Clockwise degrees (0, 90, 180, 270) by which a player turns the pictures.

    Raises:
        FlowlessError: There are no frames, their sizes differ, or the encoder refuses them.
    """
    with whole_file(path) as draft, _keep_scheduling():
        try:
            # "bitexact" leaves out the date and the library's version.
            with av.open(os.fspath(draft), "w", container_options={"fflags": "+bitexact"}) as container:
                stream: VideoStream = container.add_stream(codec, rate=fps, options={**_DETERMINISTIC.get(codec, {}), **(options or {})})  # type: ignore[assignment]
                stream.pix_fmt = pixel_format
                # x264's output depends on the number of threads; generators run one process per core instead.
                stream.thread_count = 1
                tick = Fraction(1, 1000) if timestamps is not None else 1 / Fraction(fps)
                stream.codec_context.time_base = tick
                if rotation:
                    stream.set_display_rotation(-rotation)
                times = iter(timestamps) if timestamps is not None else None
                size: tuple[int, ...] | None = None
                for number, image in enumerate(frames):
                    if size is None:
                        size = image.shape
                        stream.height, stream.width = image.shape[:2]
                    if image.shape != size:
                        raise FlowlessError(f"{path}: frame {number} is {list(image.shape)}, the first was {list(size)}; they must agree.")
                    frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                    frame.pts, frame.time_base = (number if times is None else next(times)), tick
                    container.mux(stream.encode(frame))
                if size is None:
                    raise FlowlessError(f"{path}: there are no frames to write; a video needs at least one.")
                container.mux(stream.encode(None))
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise  # `whole_file` says so
            raise FlowlessError(
                f"{path}: {codec} cannot write these frames as {pixel_format} ({error}). "
                "Sizes must be even for yuv420p, and the suffix must name a container that holds the codec."
            ) from error

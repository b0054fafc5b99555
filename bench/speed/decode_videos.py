"""Videos for `flowless bench decode`: one of every codec that PyAV encodes, in every container that takes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np
from av.codec.codec import Codec, UnknownCodecError, codecs_available
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.pipeline.video.encode import write_video

#: Containers, by their suffix, that are tried for every codec.
SUFFIXES = (".mp4", ".mkv", ".avi", ".ts", ".mov", ".webm", ".mpg", ".ogv", ".flv")
#: Encoders that write no video files: of hardware that may be there, of pictures, and of what is no picture.
_OTHERS = ("_amf", "_qsv", "_nvenc", "_vaapi", "_vulkan", "_mf", "_v4l2m2m", "_videotoolbox", "_d3d12va", "wrapped_avframe", "libx264rgb")
#: What makes slow encoders quick, and streams worth jumping in.
_OPTIONS = {
    "libx264": {"g": "12", "bf": "3"},
    "libx265": {"x265-params": "log-level=error:keyint=12:bframes=3"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "g": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "g": "12"},
    "libsvtav1": {"preset": "12", "svtav1-params": "keyint=12"},
    "libaom-av1": {"cpu-used": "8", "usage": "realtime", "g": "12"},
    "mpeg4": {"g": "12", "bf": "2"},
    "mpeg2video": {"g": "12", "bf": "2"},
}
#: Sizes that a codec insists on; others take 160 x 96.
_SIZES = {"dvvideo": (480, 720), "h261": (144, 176), "h263": (144, 176), "dnxhd": (720, 1280), "cinepak": (96, 160)}


def encoders() -> list[str]:
    """Return FFmpeg's names of the video encoders that PyAV has here, without hardware's."""
    found = []
    for name in sorted(codecs_available):
        try:
            codec = Codec(name, "w")
        except UnknownCodecError:
            continue
        if codec.type == "video" and not any(name.endswith(other) for other in _OTHERS):
            found.append(name)
    return found


def write_videos(folder: Path, *, frames: int = 30) -> Iterator[Path]:
    """Write a video of every codec in every container that takes it; yield each file.

    Args:
        folder: Where; it is made.
        frames: Frames of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in encoders():
        formats = [item.name for item in Codec(name, "w").video_formats or ()]
        pixels = next(
            (item for item in ("yuvj420p", "yuv420p", "yuv422p", "rgb24", "bgr24") if item in formats), (formats or ["yuv420p"])[0]
        )
        for suffix in SUFFIXES:
            path = folder / f"{name}{suffix}"
            try:
                write_video(path, moving(frames, *_SIZES.get(name, (96, 160))), codec=name, options=_OPTIONS.get(name), pixel_format=pixels)
            except (FlowlessError, av.error.FFmpegError, OSError, ValueError, RuntimeError):
                path.unlink(missing_ok=True)  # not in this container, or not in this size
                continue
            if _decodes(path):
                yield path
            else:  # written as data of unknown kind
                path.unlink()


def _decodes(path: Path) -> bool:
    try:
        with av.open(str(path)) as container:
            return next(container.decode(video=0), None) is not None
    except (av.error.FFmpegError, IndexError, ValueError, AttributeError):
        return False


def moving(frames: int, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Yield frames uint8 `[height, width, 3]` of a sliding texture, no two alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    for number in range(frames):
        texture = 110 + 60 * np.sin((columns + 3 * number) / 7.0) * np.cos((rows - number) / 5.0)
        frame = np.repeat(texture[:, :, None], 3, axis=2)
        frame[height // 2 :, (number * 11) % (width - 20) : (number * 11) % (width - 20) + 20, number % 3] = 230
        yield frame.astype(np.uint8)

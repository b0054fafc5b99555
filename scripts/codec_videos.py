"""Write a video of every codec that PyAV encodes, in every container that takes it: `python scripts/codec_videos.py FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np
from av.codec.codec import Codec, UnknownCodecError, codecs_available

from flowless.bench.lib.sample_videos import sample_frames
from flowless.errors import FlowlessError
from flowless.pipeline.video.encode import write_video

#: Containers, by their suffix, that are tried for every codec.
SUFFIXES = (".mp4", ".mkv", ".avi", ".ts", ".mov", ".webm", ".mpg", ".ogv", ".flv")
#: Encoders that write no video files: of hardware that may be there, and of single pictures.
_OTHERS = ("_amf", "_qsv", "_nvenc", "_vaapi", "_vulkan", "_mf", "_v4l2m2m", "_videotoolbox", "_d3d12va", "wrapped_avframe", "libx264rgb")
#: What makes slow encoders fast, and streams with several key frames.
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
#: Rows and columns that a codec requires; others take 96 x 160.
_SIZES = {"dvvideo": (480, 720), "h261": (144, 176), "h263": (144, 176), "dnxhd": (720, 1280), "cinepak": (96, 160)}


def encoders() -> list[str]:
    """Return FFmpeg's names of PyAV's video encoders, without those of hardware."""
    found = []
    for name in sorted(codecs_available):
        try:
            codec = Codec(name, "w")
        except UnknownCodecError:
            continue
        if codec.type == "video" and not name.endswith(_OTHERS):
            found.append(name)
    return found


def write_videos(folder: Path, *, frames: int = 30) -> Iterator[Path]:
    """Write a video of `frames` frames for every codec in every container that takes it; yield each file."""
    for name in encoders():
        formats = [item.name for item in Codec(name, "w").video_formats or ()] or ["yuv420p"]
        pixels = next((item for item in ("yuvj420p", "yuv420p", "yuv422p", "rgb24", "bgr24") if item in formats), formats[0])
        height, width = _SIZES.get(name, (96, 160))
        for suffix in SUFFIXES:
            path = folder / f"{name}{suffix}"
            shown = sample_frames(np.random.default_rng(0), width=width, height=height, frames=frames)
            try:
                write_video(path, shown, codec=name, options=_OPTIONS.get(name), pixel_format=pixels)
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


if __name__ == "__main__":
    for written in write_videos(Path(sys.argv[1])):
        print(written)

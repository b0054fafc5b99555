"""Opens a video file or a folder of numbered pictures with the matching reader."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from flowless.pipeline.video.frame_folder import FrameFolder
from flowless.pipeline.video.info import VideoInfo
from flowless.pipeline.video.reader import VideoReader


def open_reader(
    path: str | os.PathLike[str], *, threads: int = 1, known: VideoInfo | None = None, rate: float | None = None
) -> VideoReader | FrameFolder:
    """Open a video file or a folder of numbered pictures.

    Args:
        path: The file or folder.
        threads: Threads that the codec of a file may use.
        known: The file's `info` from an earlier scan, so that its packets need not be read again.
        rate: Frames per second of a folder, for `VideoInfo.frame_at`.

    Raises:
        Unreadable: `path` is neither, or cannot be read.
    """
    if os.path.isdir(path):  # noqa: PTH112  pathlib raises where a name is too long
        return FrameFolder(path, rate=rate)
    return VideoReader(path, threads=threads, known=known)


@dataclass(frozen=True, kw_only=True)
class VideoPart:
    """A video, or a part of one, and how it is opened."""

    path: str
    """The file or folder of pictures."""
    open: Callable[[], VideoReader | FrameFolder]
    """Opens it; raises FlowlessError where it cannot be read."""
    first_frame: int = 0
    """Ordinal of the part's first frame."""
    frames: int | None = None
    """Frames of the part; None: all to the end."""


def whole_video(path: str | os.PathLike[str]) -> VideoPart:
    """Return all of a video."""
    return VideoPart(path=os.fspath(path), open=partial(open_reader, path))

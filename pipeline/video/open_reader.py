"""Opening whatever holds a video: a file, or a folder of numbered pictures."""

from __future__ import annotations

import os

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
        known: A file's `info` from an earlier look.
        rate: A folder's pictures a second, where times are looked up.

    Raises:
        Unreadable: It is neither, or cannot be read.
    """
    if os.path.isdir(path):  # noqa: PTH112  a name that is too long is no folder; pathlib raises
        return FrameFolder(path, rate=rate)
    return VideoReader(path, threads=threads, known=known)

"""Opens a video file or a folder of numbered pictures with the matching reader."""

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
        known: The file's `info` from an earlier scan, so that its packets need not be read again.
        rate: Frames per second of a folder, for `VideoInfo.frame_at`.

    Raises:
        Unreadable: `path` is neither, or cannot be read.
    """
    if os.path.isdir(path):  # noqa: PTH112  pathlib raises where a name is too long
        return FrameFolder(path, rate=rate)
    return VideoReader(path, threads=threads, known=known)

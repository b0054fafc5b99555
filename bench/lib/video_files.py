"""The video files that a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowless.errors import FlowlessError


def videos_of(sources: Sequence[Path]) -> list[Path]:
    """Return the files that are named, and the videos in the folders that are, at any depth.

    Raises:
        FlowlessError: There is no such file or folder, or a folder holds no video.
    """
    from flowless.pipeline.dataset.sources import VIDEO_SUFFIXES

    found: list[Path] = []
    for source in sources:
        if not source.exists():
            raise FlowlessError(f"{source}: there is no such file or folder. Check the name.")
        files = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES)
        if source.is_dir() and not files:
            raise FlowlessError(f"{source}: holds no video file. Name another folder, or the files themselves.")
        found += files if source.is_dir() else [source]
    return found

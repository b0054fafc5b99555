"""One-line helpers to read a video file in tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flowless.pipeline.video.info import VideoInfo
from flowless.pipeline.video.open_reader import open_reader
from flowless.pipeline.video.reader import VideoReader


def frames_of(path: Path, ordinals: Iterable[int], *, known: VideoInfo | None = None, threads: int = 1) -> np.ndarray:
    """Return frames uint8 `[K, H, W, 3]` in the order of `ordinals`."""
    with VideoReader(path, threads=threads, known=known) as video:
        return video.stack(list(ordinals))


def all_frames(path: Path) -> list[np.ndarray]:
    """Return every frame, from a full sequential decode."""
    with open_reader(path) as video:
        return list(video)


def info_of(path: Path, *, decode: bool = False) -> VideoInfo:
    """Return a video's properties, confirmed by decoding all frames if `decode`, else from its packets."""
    with VideoReader(path) as video:
        return video.prove() if decode else video.info

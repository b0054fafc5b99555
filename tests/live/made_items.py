"""Items as a watcher yields them, made by hand; a camera that is computed; a full disk."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from flowless.engines.engine import likeliest
from flowless.engines.live.records import Answer

LABELS = ("none", "wave", "jump")


def made_answer(
    seconds: float, label: str, share: float = 0.9, source: str = "cam", *, began: float = 1000.0, frame: int | None = None
) -> Answer:
    """Return an `Answer` at a time in which one label has a probability, and the first label the rest."""
    values = np.zeros(len(LABELS))
    values[LABELS.index(label)] = share
    values[0] = 1 - share
    scores = np.log(np.maximum(values, 1e-9)).astype(np.float32)
    return Answer(
        source=source,
        frame=round(seconds * 10) if frame is None else frame,
        pts_ns=round(seconds * 1e9),
        arrived=began + seconds,
        latency=0.01,
        top=likeliest(scores, LABELS, 2),
        scores=scores,
        dropped=3,
    )


class Camera:
    """Frames at a rate: each is grey, its value rises by seven."""

    def __init__(self, height: int = 48, width: int = 64, fps: float = 50) -> None:
        self.size, self._period, self._begin = (height, width), 1 / fps, time.monotonic()
        self._newest: tuple[int, np.ndarray] | None = None

    def picture(self, name: str) -> np.ndarray:
        """Return the newest frame, the same array until there is another."""
        number = int((time.monotonic() - self._begin) / self._period)
        if self._newest is None or self._newest[0] != number or self._newest[1].shape[:2] != self.size:
            self._newest = number, np.full((*self.size, 3), 7 * number % 250, np.uint8)
        return self._newest[1]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process be larger than `size` bytes within the block, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

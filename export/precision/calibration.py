"""Calibration of INT8: choose the videos to measure the scales on, stream their clips in constant memory, and record which were used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowless.console import log, progress
from flowless.errors import FlowlessError
from flowless.files import sha256_of
from flowless.pipeline.clip.preprocess import load_record
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord

Method = Literal["entropy", "max"]
#: A graph's inputs by name.
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The videos that INT8 scales are measured on, and the method. The same calibration gives the same scales."""

    index: Path
    """Index of the videos, from `flowless scan`."""
    spec: ClipSpec
    """What a clip is."""
    videos: int = 32
    """Videos to measure on, one clip each."""
    method: Method = "max"
    """max: the scale covers the largest value seen. entropy: clip rare large values where that keeps more information. PA's maps have rare
    large values that matter: on trained PAN-Lite the error of max is a fifth of entropy's."""
    seed: int = 0
    """Seed of the choice of videos."""
    skipped: list[str] = field(default_factory=list, compare=False)
    """The errors of videos that could not be read; other videos were used instead."""
    used: list[str] = field(default_factory=list, compare=False)
    """Ids of the videos that were used."""

    def __post_init__(self) -> None:
        """Check the number of videos and the method."""
        if self.videos < 1:
            raise FlowlessError(f"calibration videos is {self.videos}; it must be at least 1 (32 are enough for most models).")
        if self.method not in {"entropy", "max"}:
            raise FlowlessError(f"calibration method is {self.method!r}; it must be entropy or max.")

    @property
    def key(self) -> dict[str, Any]:
        """Everything that decides the scales, for a cache key: the index by content, not by path."""
        return {"index": sha256_of(self.index), "videos": self.videos, "method": self.method, "seed": self.seed}

    def record(self) -> dict[str, Any]:
        """Return the manifest's record, after `stream` has run."""
        return {**self.key, "used": list(self.used), "skipped": list(self.skipped)}

    @contextmanager
    def stream(self, feeds: Callable[[np.ndarray], Iterator[Feeds]]) -> Iterator[ClipReader]:
        """Open a reader of one clip at a time, with a progress bar; `feeds` yields a graph's inputs for a clip (`GraphFeeds`)."""
        index = DatasetIndex.load(self.index)
        order = calibration_order(index, seed=self.seed)
        if not order:
            raise FlowlessError(f"{self.index}: this index holds no videos to calibrate on. Scan a data set that has some.")
        self.used.clear()
        self.skipped.clear()
        with progress() as bar:
            task = bar.add_task("calibrate int8", total=min(self.videos, len(order)))
            yield ClipReader(self, index, order, feeds=feeds, advance=lambda: bar.advance(task))


class ClipReader:
    """Reads clips one by one, with the interface of ONNX Runtime's calibrators (`get_next` returns None at the end)."""

    def __init__(
        self,
        calibration: Calibration,
        index: DatasetIndex,
        order: list[VideoRecord],
        *,
        feeds: Callable[[np.ndarray], Iterator[Feeds]],
        advance: Callable[[], None],
    ) -> None:
        self._calibration = calibration
        self._index = index
        self._order = order
        self._feeds = feeds
        self._advance = advance
        self._next = 0
        self._steps: Iterator[Feeds] = iter(())

    def get_next(self) -> Feeds | None:
        """Return the graph's inputs for the next clip, or for a streaming graph's next step; None after the last.

        Raises:
            FlowlessError: No video of the index can be read.
        """
        feeds = next(self._steps, None)
        if feeds is None and (clip := self._next_clip()) is not None:
            self._steps = self._feeds(clip)
            feeds = next(self._steps)
        return feeds

    def _next_clip(self) -> np.ndarray | None:
        """Return the next clip that can be read, uint8 `[1, N, m, H, W, 3]`; None after the last."""
        calibration = self._calibration
        while self._next < len(self._order) and len(calibration.used) < calibration.videos:
            record = self._order[self._next]
            self._next += 1
            try:
                clip = load_record(self._index, record, calibration.spec)[:1]
            except FlowlessError as error:
                calibration.skipped.append(str(error))
                log.print(f"calibration: left out: {error}", style="yellow", markup=False, soft_wrap=True)
                continue
            calibration.used.append(record.id)
            self._advance()
            return clip
        if not calibration.used:
            first = calibration.skipped[0]
            raise FlowlessError(f"{calibration.index}: none of its videos could be read to calibrate on; the first error: {first}")
        return None

    def get_first(self) -> Feeds | None:
        """Return the first inputs and rewind."""
        feeds = self.get_next()
        self.rewind()
        return feeds

    def rewind(self) -> None:
        """Start again with the first."""
        self._next, self._steps = 0, iter(())
        self._calibration.used.clear()
        self._calibration.skipped.clear()


def calibration_order(index: DatasetIndex, *, seed: int) -> list[VideoRecord]:
    """Return an index's videos in the order of calibration: one of each class by turns, within a class by a seeded hash."""

    def shuffled(record: VideoRecord) -> str:
        return hashlib.sha256(f"{seed}:{record.id}".encode()).hexdigest()

    turns: dict[int, int] = {}
    ranked = []
    for record in sorted(index.videos, key=shuffled):
        turns[record.label] = turns.get(record.label, -1) + 1
        ranked.append((turns[record.label], shuffled(record), record))
    return [record for _, _, record in sorted(ranked, key=lambda item: item[:2])]

"""Calibration: which videos the scales of INT8 are measured on, streamed with flat memory, and the record of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowless.console import log, progress
from flowless.engines.streaming.memory import feeds_of
from flowless.errors import FlowlessError
from flowless.files import sha256_of
from flowless.pipeline.clip.preprocess import load_record
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord

Method = Literal["entropy", "max"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What is measured, and how. The same calibration gives the same scales."""

    index: Path
    """Index of the videos, from `flowless scan`."""
    spec: ClipSpec
    """What a clip is."""
    videos: int = 32
    """Videos to measure on, one clip each."""
    method: Method = "max"
    """max: the scale holds the largest value seen; entropy: cut off rare large ones where that keeps more information (PA's maps are
    full of rare large values that matter: on trained PAN-Lite max leaves a fifth of the error)."""
    seed: int = 0
    """Chooses the videos."""
    skipped: list[str] = field(default_factory=list, compare=False)
    """Videos that could not be read; others took their places."""
    used: list[str] = field(default_factory=list, compare=False)
    """Ids of the videos that were measured."""

    def __post_init__(self) -> None:
        """Refuse a calibration on nothing."""
        if self.videos < 1:
            raise FlowlessError(f"calibration videos is {self.videos}; it must be at least 1 (32 are plenty for most models).")
        if self.method not in {"entropy", "max"}:
            raise FlowlessError(f"calibration method is {self.method!r}; it must be entropy or max.")

    @property
    def key(self) -> dict[str, Any]:
        """What decides the scales, for a cache: the index's content, not its place."""
        return {"index": sha256_of(self.index), "videos": self.videos, "method": self.method, "seed": self.seed}

    def record(self) -> dict[str, Any]:
        """Return the manifest's record, after `stream` has run."""
        return {**self.key, "used": list(self.used), "skipped": list(self.skipped)}

    @contextmanager
    def stream(self, inputs: Sequence[str]) -> Iterator[ClipReader]:
        """Give a reader of one clip at a time, as the graph's inputs take it; a progress bar runs while it is read."""
        index = DatasetIndex.load(self.index)
        order = chosen(index, seed=self.seed)
        if not order:
            raise FlowlessError(f"{self.index}: this index holds no videos to calibrate on. Scan a data set that has some.")
        self.used.clear()
        self.skipped.clear()
        with progress() as bar:
            task = bar.add_task("calibrate int8", total=min(self.videos, len(order)))
            yield ClipReader(self, index, order, inputs=inputs, advance=lambda: bar.advance(task))


class ClipReader:
    """One clip after the other, as ONNX Runtime's calibrators ask for them (`get_next`, None at the end)."""

    def __init__(self, calibration: Calibration, index: DatasetIndex, order: list[VideoRecord], *, inputs: Sequence[str], advance) -> None:
        self._calibration = calibration
        self._index = index
        self._order = order
        self._inputs = inputs
        self._advance = advance
        self._next = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next clip, uint8 `[1, N, m, H, W, 3]` by the names of the graph's inputs; None when there are enough.

        Raises:
            FlowlessError: Not one video of the index can be read.
        """
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
            return feeds_of(clip, self._inputs)
        if not calibration.used:
            first = calibration.skipped[0]
            raise FlowlessError(f"{calibration.index}: not one of its videos could be read to calibrate on; the first: {first}")
        return None

    def get_first(self) -> dict[str, np.ndarray] | None:
        """Return a clip without using it up."""
        clip = self.get_next()
        self.rewind()
        return clip

    def rewind(self) -> None:
        """Start again with the first."""
        self._next = 0
        self._calibration.used.clear()
        self._calibration.skipped.clear()


def chosen(index: DatasetIndex, *, seed: int) -> list[VideoRecord]:
    """Return an index's videos in the order of calibration: class after class in turn, within a class by a seeded hash."""

    def shuffled(record: VideoRecord) -> str:
        return hashlib.sha256(f"{seed}:{record.id}".encode()).hexdigest()

    turns: dict[int, int] = {}
    ranked = []
    for record in sorted(index.videos, key=shuffled):
        turns[record.label] = turns.get(record.label, -1) + 1
        ranked.append((turns[record.label], shuffled(record), record))
    return [record for _, _, record in sorted(ranked, key=lambda item: item[:2])]

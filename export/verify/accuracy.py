"""Top-1 of an engine and of the exact engine on the same labelled videos."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowless.console import log, progress
from flowless.engines.backends.backend import Backend
from flowless.engines.bundle.manifest import Manifest
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.clip.preprocess import load_record
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.clip.view_scores import average_views
from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 of two engines on the same videos."""

    videos: int
    """Videos that could be read."""
    top1: float
    """Share of them that the engine labels correctly."""
    exact_top1: float
    """The same share for the exact engine."""

    @property
    def drop(self) -> float:
        """Points of top-1, of 100, that the engine lost."""
        return 100 * (self.exact_top1 - self.top1)


def compare_accuracy(engine: Backend, exact: Backend, manifest: Manifest, data: Path, *, what: str) -> Accuracy:
    """Score every video of an index with both engines. Videos are decoded a few ahead: one for each core is in memory.

    Raises:
        FlowlessError: The index cannot be used, or none of its videos can be read.
    """
    index = DatasetIndex.load(data)
    unknown = sorted({index.labels[record.label] for record in index.videos} - set(manifest.labels))
    if unknown:
        raise FlowlessError(
            f"{data}: labels that the model does not have: {', '.join(unknown[:5])}. The model's: {', '.join(manifest.labels[:20])}."
        )
    right, exact_right, videos = 0, 0, 0
    with progress() as bar:
        task = bar.add_task(f"top-1 of {what}", total=len(index.videos))
        for record, clip in clips_of(index, index.videos, manifest.spec):
            bar.advance(task)
            if isinstance(clip, FlowlessError):
                log.print(f"not counted: {clip}", style="yellow", markup=False, soft_wrap=True)
                continue
            truth = manifest.labels.index(index.labels[record.label])
            right += int(average_views(engine(clip), manifest.spec.average).argmax() == truth)
            exact_right += int(average_views(exact(clip), manifest.spec.average).argmax() == truth)
            videos += 1
    if not videos:
        raise FlowlessError(f"{data}: not one of its {len(index.videos)} videos could be read.")
    return Accuracy(videos=videos, top1=right / videos, exact_top1=exact_right / videos)


def clips_of(
    index: DatasetIndex, records: tuple[VideoRecord, ...] | list[VideoRecord], spec: ClipSpec
) -> Iterator[tuple[VideoRecord, np.ndarray | FlowlessError]]:
    """Yield each video's views, uint8 `[views, N, m, H, W, 3]`, or the error that decoding it raised; a few videos are decoded ahead."""

    def read(record: VideoRecord) -> np.ndarray | FlowlessError:
        try:
            return load_record(index, record, spec)
        except FlowlessError as error:
            return error

    step = usable_cores()
    with ThreadPoolExecutor(step) as pool:
        for start in range(0, len(records), step):
            part = list(records[start : start + step])
            yield from zip(part, pool.map(read, part), strict=True)

"""What a model says of every video of an index: its scores, the features that its heads read, VAP's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.export.explain.introspection import Floats, Looker
from flowless.machine import usable_cores
from flowless.pipeline.clip.spec import Average, ClipSpec
from flowless.pipeline.clip.view_scores import average_views
from flowless.pipeline.dataset.index import DatasetIndex, Refused, VideoRecord
from flowless.train.evaluation.score_videos import read_views
from flowless.train.loop.index_checks import relabel

if TYPE_CHECKING:
    from flowless.pipeline.clip.preprocess import ClipViews


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSetSeen:
    """What a model said of V videos, each averaged over its views."""

    model: str
    """The model's name."""
    source: str
    """What ran."""
    spec: ClipSpec
    """How the views were cut."""
    names: tuple[str, ...]
    """Label names in the order of the scores."""
    ids: tuple[str, ...]
    """The videos' ids in the index."""
    labels: NDArray[np.int64]
    """`[V]`, true classes."""
    scores: Floats
    """`[V, classes]`, before any softmax."""
    features: Floats
    """`[V, D]`: what the heads read, averaged over the segments, the branches' one after another."""
    timescale_weights: dict[str, Floats]
    """Branch -> `[V, N-1]`: VAP's weights; empty where the model has no VAP."""
    bad_videos: tuple[Refused, ...]
    """Videos that could not be read."""

    def cut(self, ids: Sequence[str]) -> DataSetSeen:
        """Return the same of some of the videos alone, in the order given."""
        place = {video: number for number, video in enumerate(self.ids)}
        rows = [place[video] for video in ids]
        return DataSetSeen(
            model=self.model,
            source=self.source,
            spec=self.spec,
            names=self.names,
            ids=tuple(ids),
            labels=self.labels[rows],
            scores=self.scores[rows],
            features=self.features[rows],
            timescale_weights={branch: weights[rows] for branch, weights in self.timescale_weights.items()},
            bad_videos=self.bad_videos,
        )


def see_data_set(looker: Looker, index: DatasetIndex, *, batch_size: int = 16, threads: int | None = None) -> DataSetSeen:
    """Run a model on every video of an index, by the views that it was made for.

    Args:
        looker: What `open_looker` opened.
        index: Labelled videos; their labels, by name, must be among the model's.
        batch_size: Views that run together, nearly.
        threads: Threads that decode; by default one a processor core.

    Raises:
        FlowlessError: The index does not fit the model, no video can be read, or what the network says is not a number.
    """
    index = relabel(index, looker.labels)
    batches = _Batches(looker, size=batch_size)
    kept: list[VideoRecord] = []
    bad: list[Refused] = []
    with progress() as bar:
        task = bar.add_task(escape(f"{looker.model} sees {index.name}"), total=len(index.videos))
        for record, views in read_views(index, looker.spec, threads or usable_cores()):
            if isinstance(views, FlowlessError):
                bad.append(Refused(path=record.path, reason=str(views)))
            else:
                batches.add(views)
                kept.append(record)
            bar.advance(task)
        batches.run()
    if not kept:
        raise FlowlessError(f"{index.name}: not one of {len(index.videos)} videos could be read; the first: {bad[0].reason}")
    scores, features, *weights = (np.stack(column) for column in zip(*(video.means for video in batches.videos), strict=True))
    broken = int((~np.isfinite(features).all(1) | ~np.isfinite(scores).all(1)).sum())
    if broken:
        raise FlowlessError(f"{looker.source}: {broken} of {len(kept)} videos have features or scores that are no numbers. Train it again.")
    return DataSetSeen(
        model=looker.model,
        source=looker.source,
        spec=looker.spec,
        names=looker.labels,
        ids=tuple(record.id for record in kept),
        labels=np.array([record.label for record in kept], np.int64),
        scores=scores,
        features=features,
        timescale_weights=dict(zip(batches.weighted, weights, strict=True)),
        bad_videos=tuple(bad),
    )


@dataclass
class _Video:
    """The views of one video, until all have run: then their means alone are kept."""

    left: int
    average: Average
    means: list[Floats] = field(default_factory=list)
    _views: list[list[Floats]] = field(default_factory=list)

    def add(self, columns: list[Floats]) -> None:
        self._views.append(columns)
        self.left -= len(columns[0])
        if not self.left:
            scores, *rest = (np.concatenate(parts) for parts in zip(*self._views, strict=True))
            self.means = [average_views(scores, self.average), *(column.mean(0) for column in rest)]
            self._views = []


class _Batches:
    """Runs views in full batches, whatever videos they belong to."""

    def __init__(self, looker: Looker, *, size: int) -> None:
        self.videos: list[_Video] = []
        self.weighted: list[str] = []
        self._looker, self._size = looker, size
        self._waiting: list[tuple[_Video, NDArray[np.uint8]]] = []

    def add(self, views: ClipViews) -> None:
        """Add a video."""
        video = _Video(left=len(views), average=views.spec.average)
        self.videos.append(video)
        for part in views.parts(self._size):
            self._waiting.append((video, part))
            if sum(len(waiting) for _, waiting in self._waiting) >= self._size:
                self.run()

    def run(self) -> None:
        """Run what waits."""
        if not self._waiting:
            return
        seen = self._looker.look(np.concatenate([part for _, part in self._waiting]), cue=False)
        weights = {branch.name: branch.timescale_weights for branch in seen.branches if branch.timescale_weights is not None}
        self.weighted = list(weights)
        columns = [seen.scores, np.concatenate([branch.features.mean(1) for branch in seen.branches], axis=1), *weights.values()]
        start = 0
        for video, part in self._waiting:
            video.add([column[start : start + len(part)] for column in columns])
            start += len(part)
        self._waiting = []

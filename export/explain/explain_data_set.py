"""Explain a model over a data set, alone or compared with another: accuracy by class, t-SNE maps, VAP's weights by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.export.explain.cues import timescale_names
from flowless.export.explain.introspection import Floats, InspectableModel, ModelInfo
from flowless.export.explain.tsne_map import MIN_VIDEOS, place_in_plane, same_class_share, sample_evenly
from flowless.pipeline.dataset.index import DatasetIndex, Refused
from flowless.train.evaluation import metrics
from flowless.train.evaluation.options import EvaluationOptions
from flowless.train.evaluation.score_videos import score_videos
from flowless.train.loop.index_checks import relabel

#: Seed of the sample and of the maps.
SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSetOutputs:
    """A model's outputs for V videos, each averaged over its views."""

    model: ModelInfo
    ids: tuple[str, ...]
    """The videos' ids in the index."""
    labels: NDArray[np.int64]
    """`[V]`, true classes."""
    scores: Floats
    """`[V, classes]`, before any softmax."""
    features: Floats
    """`[V, D]`: the heads' input, averaged over the segments and concatenated over the branches."""
    timescale_weights: dict[str, Floats]
    """Branch -> `[V, N-1]`: VAP's weights; empty where the model has no VAP."""
    bad_videos: tuple[Refused, ...]
    """Videos that could not be read."""

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """`[V]`, the predicted classes."""
        return self.scores.argmax(1)

    @property
    def top1(self) -> float:
        """Share of the videos that are predicted correctly."""
        return metrics.top1(self.scores, self.labels)

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the classes' accuracies."""
        return metrics.mean_class_accuracy(self.scores, self.labels)

    def timescales_by_class(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return branch -> class -> name of VAP's vector -> its mean weight over the class's videos."""
        names = timescale_names(self.model.spec.segments)
        return {
            branch: {
                self.model.labels[label]: dict(zip(names, weights[self.labels == label].mean(0).tolist(), strict=True))
                for label in np.unique(self.labels)
            }
            for branch, weights in self.timescale_weights.items()
        }

    def select(self, ids: Sequence[str]) -> DataSetOutputs:
        """Return the outputs for some of the videos, in the given order."""
        row_of = {video: row for row, video in enumerate(self.ids)}
        rows = [row_of[video] for video in ids]
        return replace(
            self,
            ids=tuple(ids),
            labels=self.labels[rows],
            scores=self.scores[rows],
            features=self.features[rows],
            timescale_weights={branch: weights[rows] for branch, weights in self.timescale_weights.items()},
        )


@dataclass(frozen=True, kw_only=True)
class ClassGain:
    """One class's accuracy, and the gain over another model."""

    label: str
    videos: int
    """Number of its videos."""
    accuracy: float
    """Share of them that the model predicts correctly."""
    other: float | None
    """The other model's share; None without another model."""

    @property
    def gain(self) -> float | None:
        """The model's accuracy minus the other's, from -1 to 1."""
        return None if self.other is None else self.accuracy - self.other


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSetExplanation:
    """One model or two on the same videos."""

    data: str
    """The index, as it was given."""
    models: tuple[DataSetOutputs, ...]
    """The model, and the one that it is compared with; the same videos in the same order."""
    classes: tuple[ClassGain, ...]
    """All classes with videos: the largest gain first, or without another model the highest accuracy."""
    sample: NDArray[np.int64]
    """Indices of the videos on the maps."""
    maps: tuple[NDArray[np.float64], ...]
    """Each model's map, `[sample, 2]`; empty if there are too few videos."""
    same_class: tuple[float, ...]
    """Each model's `same_class_share` of the sample; empty if there are no maps."""
    bad_videos: tuple[Refused, ...] = ()
    """Videos that one of the models could not read; they are left out for both."""

    @property
    def headings(self) -> tuple[str, ...]:
        """The models' names; where two have the same name, their files."""
        names = [outputs.model.name for outputs in self.models]
        return tuple(names if len(set(names)) == len(names) else (str(outputs.model.path) for outputs in self.models))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "data": self.data,
            "videos": len(self.models[0].ids),
            "seed": SEED,
            "models": [self._model(number) for number in range(len(self.models))],
            "per_class": [asdict(item) | {"gain": item.gain} for item in self.classes],
            "bad_videos": [{"path": bad.path, "reason": bad.reason} for bad in self.bad_videos],
        }

    def _model(self, number: int) -> dict[str, Any]:
        outputs = self.models[number]
        return {
            "model": outputs.model.name,
            "source": outputs.model.source,
            "top1": outputs.top1,
            "mean_class_accuracy": outputs.mean_class_accuracy,
            "timescales": {branch or "all": weights for branch, weights in outputs.timescales_by_class().items()},
            "map": {"same_class_neighbours": self.same_class[number], "points": self.points(number)} if self.maps else None,
        }

    def points(self, number: int) -> list[dict[str, Any]]:
        """Return the points of a model's map: id, label, predicted label, x and y."""
        outputs = self.models[number]
        return [
            {
                "id": outputs.ids[row],
                "label": outputs.model.labels[outputs.labels[row]],
                "predicted": outputs.model.labels[outputs.predicted[row]],
                "x": float(x),
                "y": float(y),
            }
            for row, (x, y) in zip(self.sample, self.maps[number], strict=True)
        ]


def explain_data_set(
    model: InspectableModel, index: DatasetIndex, *, against: InspectableModel | None = None, most: int = 2000, threads: int | None = None
) -> DataSetExplanation:
    """Run a model, and optionally another, on every video of an index and compare them by class.

    Args:
        model: The model, from `open_model`.
        index: Labelled videos.
        against: The model to compare it with.
        most: Videos on a map, at most; of more, equally many of each class are chosen as far as there are.
        threads: Decoding threads; by default one per processor core.

    Raises:
        FlowlessError: A model does not fit the index, no video can be read, or `most` is too small.
    """
    if most < MIN_VIDEOS:
        raise FlowlessError(f"most is {most}; a map takes at least {MIN_VIDEOS} videos.")
    models = [run_data_set(one, index, threads=threads) for one in (model, against) if one is not None]
    common = set(models[0].ids).intersection(*(outputs.ids for outputs in models))
    if not common:
        raise FlowlessError(f"{index.name}: no video could be read by both models; the first: {models[0].bad_videos[0].reason}")
    models = [outputs.select([video for video in models[0].ids if video in common]) for outputs in models]
    sample = sample_evenly(models[0].labels, most=most, seed=SEED)
    maps: list[NDArray[np.float64]] = []
    if len(sample) >= MIN_VIDEOS:
        with progress() as bar:
            task = bar.add_task(f"t-SNE of {len(sample)} videos", total=len(models))
            for outputs in models:
                maps.append(place_in_plane(outputs.features[sample], seed=SEED))
                bar.advance(task)
    bad = {video.path: video for outputs in reversed(models) for video in outputs.bad_videos}
    return DataSetExplanation(
        data=index.name,
        models=tuple(models),
        classes=class_gains(models[0], models[1] if against is not None else None),
        sample=sample,
        maps=tuple(maps),
        same_class=tuple(same_class_share(outputs.features[sample], outputs.labels[sample]) for outputs in models) if maps else (),
        bad_videos=tuple(bad.values()),
    )


def class_gains(outputs: DataSetOutputs, other: DataSetOutputs | None) -> tuple[ClassGain, ...]:
    """Compute each class's accuracy, and its gain over another model.

    Args:
        outputs: The model's outputs.
        other: The other model's, for the same videos in the same order; its labels may be in another order.

    Returns:
        The classes with videos: the largest gain first, or without `other` the highest accuracy; ties by name.
    """
    correct = outputs.predicted == outputs.labels
    other_correct = None if other is None else other.predicted == other.labels
    rows = []
    for label in np.unique(outputs.labels):
        members = outputs.labels == label
        other_accuracy = None if other_correct is None else float(other_correct[members].mean())
        accuracy = float(correct[members].mean())
        rows.append(ClassGain(label=outputs.model.labels[label], videos=int(members.sum()), accuracy=accuracy, other=other_accuracy))
    return tuple(sorted(rows, key=lambda row: (-(row.accuracy if row.gain is None else row.gain), -row.accuracy, row.label)))


def run_data_set(model: InspectableModel, index: DatasetIndex, *, batch_size: int = 16, threads: int | None = None) -> DataSetOutputs:
    """Run a model on every video of an index, by the views of its spec.

    Args:
        model: The model, from `open_model`.
        index: Labelled videos; their labels, by name, must be among the model's.
        batch_size: Views that run together, at most.
        threads: Decoding threads; by default one per processor core.

    Raises:
        FlowlessError: The index does not fit the model, no video can be read, or the outputs are not finite.
    """
    index = relabel(index, model.info.labels)
    means = _ViewMeans(model, views=model.info.spec.views)
    options = EvaluationOptions(batch_size=batch_size, threads=threads)
    found = score_videos(means.scores, index, model.info.spec, options=options)
    features, *weights = means.columns()
    broken = int((~np.isfinite(features).all(1) | ~np.isfinite(found.scores).all(1)).sum())
    if broken:
        raise FlowlessError(
            f"{model.info.source}: {broken} of {len(found.ids)} videos have features or scores that are NaN or infinite. Train it again."
        )
    return DataSetOutputs(
        model=model.info,
        ids=found.ids,
        labels=found.labels,
        scores=found.scores,
        features=features,
        timescale_weights=dict(zip(means.vap_branches, weights, strict=True)),
        bad_videos=tuple(found.bad_videos),
    )


class _ViewMeans:
    """Scores batches of views, and averages their features and VAP weights over each video's views.

    The views arrive video after video, equally many of each, in batches that may begin and end within a video.

    Attributes:
        vap_branches: Names of the branches that have VAP.
    """

    def __init__(self, model: InspectableModel, *, views: int) -> None:
        self.vap_branches: list[str] = []
        self._model, self._views = model, views
        self._rest: list[Floats] = []
        self._means: list[list[Floats]] = []

    def scores(self, clips: NDArray[np.uint8]) -> Floats:
        """Return the scores of views uint8 `[B, N, m, H, W, 3]`."""
        outputs = self._model.run(clips)
        weights = {branch.name: branch.timescale_weights for branch in outputs.branches if branch.timescale_weights is not None}
        self.vap_branches = list(weights)
        columns = [np.concatenate([branch.features.mean(1) for branch in outputs.branches], axis=1), *weights.values()]
        if self._rest:
            columns = [np.concatenate(pair) for pair in zip(self._rest, columns, strict=True)]
        done = len(columns[0]) // self._views * self._views
        self._means.append([column[:done].reshape(-1, self._views, column.shape[1]).mean(1) for column in columns])
        self._rest = [column[done:] for column in columns]
        return outputs.scores

    def columns(self) -> list[Floats]:
        """Return the features `[V, D]` and each VAP branch's weights `[V, N-1]`."""
        return [np.concatenate(parts) for parts in zip(*self._means, strict=True)]

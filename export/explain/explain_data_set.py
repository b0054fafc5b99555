"""A model over a whole data set, beside another: which classes gain, where videos lie by its features, which timescales it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.export.explain.cues import timescale_names
from flowless.export.explain.data_set_scores import DataSetSeen, see_data_set
from flowless.export.explain.feature_map import LEAST_VIDEOS, place_in_plane, same_class_share, sample_evenly
from flowless.export.explain.introspection import Looker
from flowless.pipeline.dataset.index import DatasetIndex, Refused
from flowless.train.evaluation import metrics

#: Seed of the sample and of the maps.
SEED = 0


@dataclass(frozen=True, kw_only=True)
class ClassGain:
    """One class's accuracy, and what a model gains over another."""

    label: str
    """The class."""
    videos: int
    """Its videos."""
    accuracy: float
    """Share of them that the model is right on."""
    other: float | None
    """The other model's; None where there is none."""

    @property
    def gain(self) -> float | None:
        """How much larger the model's share is than the other's, from -1 to 1."""
        return None if self.other is None else self.accuracy - self.other


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSetExplanation:
    """One model or two over the same videos."""

    data: str
    """The index, as it was named."""
    models: tuple[DataSetSeen, ...]
    """The model, and the one that it is held against; the same videos in the same order."""
    classes: tuple[ClassGain, ...]
    """All classes that have videos: the largest gain first, or without another model the highest accuracy."""
    sample: NDArray[np.int64]
    """Which of the videos lie on the maps."""
    maps: tuple[NDArray[np.float64], ...]
    """Each model's `[sample, 2]`; none where there are too few videos."""
    same_class: tuple[float, ...]
    """Each model's share of nearest videos that are of the same class."""
    bad_videos: tuple[Refused, ...] = field(default=())
    """Videos that one of the models could not read, and so count for neither."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "data": self.data,
            "videos": len(self.models[0].ids),
            "seed": SEED,
            "models": [self._model(place) for place in range(len(self.models))],
            "per_class": [
                {"label": item.label, "videos": item.videos, "accuracy": item.accuracy, "other": item.other, "gain": item.gain}
                for item in self.classes
            ],
            "bad_videos": [{"path": bad.path, "reason": bad.reason} for bad in self.bad_videos],
        }

    def _model(self, place: int) -> dict[str, Any]:
        seen = self.models[place]
        return {
            "model": seen.model,
            "source": seen.source,
            "top1": metrics.top1(seen.scores, seen.labels),
            "mean_class_accuracy": metrics.mean_class_accuracy(seen.scores, seen.labels),
            "timescales": {branch or "all": weights for branch, weights in timescales_by_class(seen).items()},
            "map": None if not self.maps else {"same_class_neighbours": self.same_class[place], "points": self._points(place)},
        }

    def _points(self, place: int) -> list[dict[str, Any]]:
        seen = self.models[place]
        answers = seen.scores.argmax(1)
        return [
            {
                "id": seen.ids[row],
                "label": seen.names[seen.labels[row]],
                "predicted": seen.names[answers[row]],
                "x": float(x),
                "y": float(y),
            }
            for row, (x, y) in zip(self.sample, self.maps[place], strict=True)
        ]


def explain_data_set(
    looker: Looker, index: DatasetIndex, *, against: Looker | None = None, most: int = 2000, threads: int | None = None
) -> DataSetExplanation:
    """Let a model look at every video of an index, and tell what it makes of the classes.

    Args:
        looker: The model, from `open_looker`.
        index: Labelled videos.
        against: The model to hold it against.
        most: Videos on the map, at most; where there are more, as many of each class as there are.
        threads: Threads that decode; by default one a processor core.

    Raises:
        FlowlessError: A model does not fit the index, no video can be read, or `most` is too small.
    """
    if most < LEAST_VIDEOS:
        raise FlowlessError(f"most is {most}; a map takes at least {LEAST_VIDEOS} videos.")
    found = [see_data_set(one, index, threads=threads) for one in (looker, against) if one is not None]
    both = set(found[0].ids).intersection(*(seen.ids for seen in found))
    if not both:
        raise FlowlessError(f"{index.name}: no video could be read by both models; the first: {found[0].bad_videos[0].reason}")
    found = [seen.cut([video for video in found[0].ids if video in both]) for seen in found]
    sample = sample_evenly(found[0].labels, most=most, seed=SEED)
    maps: list[NDArray[np.float64]] = []
    if len(sample) >= LEAST_VIDEOS:
        with progress() as bar:
            task = bar.add_task(f"t-SNE of {len(sample)} videos", total=len(found))
            for seen in found:
                maps.append(place_in_plane(seen.features[sample], seed=SEED))
                bar.advance(task)
    return DataSetExplanation(
        data=index.name,
        models=tuple(found),
        classes=class_gains(found[0], found[1] if against is not None else None),
        sample=sample,
        maps=tuple(maps),
        same_class=tuple(same_class_share(seen.features[sample], seen.labels[sample]) for seen in found) if maps else (),
        bad_videos=_refused(found),
    )


def _refused(found: Sequence[DataSetSeen]) -> tuple[Refused, ...]:
    """Return every video that a model could not read once, in the order of the models."""
    return tuple({bad.path: bad for seen in reversed(found) for bad in seen.bad_videos}.values())


def class_gains(seen: DataSetSeen, other: DataSetSeen | None) -> tuple[ClassGain, ...]:
    """Count each class's right answers, of the same videos.

    Args:
        seen: What the model said.
        other: What the other said of the same videos in the same order; its labels may be in another order.

    Returns:
        The classes that have videos: the largest gain first, or without `other` the highest accuracy; of equal ones by name.
    """
    right = seen.scores.argmax(1) == seen.labels
    others = None if other is None else other.scores.argmax(1) == other.labels
    rows = []
    for label in np.unique(seen.labels):
        own = seen.labels == label
        share = None if others is None else float(others[own].mean())
        rows.append(ClassGain(label=seen.names[label], videos=int(own.sum()), accuracy=float(right[own].mean()), other=share))
    return tuple(sorted(rows, key=lambda row: (-(row.accuracy if row.gain is None else row.gain), -row.accuracy, row.label)))


def timescales_by_class(seen: DataSetSeen) -> dict[str, dict[str, dict[str, float]]]:
    """Return branch -> class -> VAP's vector -> its mean weight over the class's videos; empty where the model has no VAP."""
    names = timescale_names(seen.spec.segments)
    return {
        branch: {
            seen.names[label]: dict(zip(names, weights[seen.labels == label].mean(0).tolist(), strict=True))
            for label in np.unique(seen.labels)
        }
        for branch, weights in seen.timescale_weights.items()
    }

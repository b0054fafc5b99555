"""The result of an evaluation: the scores of every video, and the figures computed from them. No PyTorch is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import Refused
from flowless.train.evaluation import metrics


@dataclass(frozen=True, kw_only=True)
class VideoScores:
    """The scores of the videos of an index that could be read, and those that could not."""

    scores: NDArray[np.float32]
    """`[videos, classes]`, averaged over the views of each video."""
    labels: NDArray[np.int64]
    """`[videos]`, true classes."""
    ids: tuple[str, ...]
    """The videos' ids in the index, in the order of the scores."""
    bad_videos: list[Refused] = field(default_factory=list)
    """Videos that could not be read, with the reason."""
    decoded_by: dict[str, int] = field(default_factory=dict)
    """Library that decoded, `dali` or `pyav` -> number of videos."""
    fallbacks: dict[str, int] = field(default_factory=dict)
    """Reason why PyAV decoded where DALI was to -> number of videos."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(VideoScores):
    """The scores of one model on an index."""

    model: str
    """Name of the model."""
    target: str
    """What ran it: pytorch, or the engine's target and precision."""
    views: str
    """Name of the test protocol."""
    spec: ClipSpec
    """How the protocol cut the views and averaged their scores."""
    names: tuple[str, ...]
    """Label names in the order of the scores."""
    seconds: float
    """Wall time, decoding included."""

    @property
    def top1(self) -> float:
        """Share of videos whose label has the highest score."""
        return metrics.top1(self.scores, self.labels)

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain values."""
        predicted = self.scores.argmax(1)
        return {
            "model": self.model,
            "target": self.target,
            "views": self.views,
            "views_per_video": self.spec.views,
            "average": self.spec.average,
            "frame": {"height": self.spec.height, "width": self.spec.width},
            "seconds": self.seconds,
            **metrics.summary(self.scores, self.labels, names=self.names),
            "predictions": [
                {"id": video, "label": self.names[label], "predicted": self.names[answer]}
                for video, label, answer in zip(self.ids, self.labels, predicted, strict=True)
            ],
            "decoded_by": self.decoded_by,
            "fallbacks": self.fallbacks,
            "bad_videos": [{"path": bad.path, "reason": bad.reason} for bad in self.bad_videos],
        }

"""What an evaluation is asked and what it answers: plain data, so that `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless.pipeline.clip.protocols import ALIASES, Views, protocol_name, protocol_spec
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import Refused
from flowless.train.evaluation import metrics


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How an evaluation runs."""

    views: Views | None = None
    """Test protocol; the scores of a video's views are averaged. Of the model's own frame size: one-view (or centre), two-clip,
    dense (10 clips), three-crop. As large as the resized frame's short side (256): full-resolution (2 clips), thirty-view
    (3 crops x 10 clips). Default: as the model says."""
    batch_size: int = 16
    """Views that run together; those of one video go in several batches where they are more."""
    threads: int | None = None
    """Threads that decode; by default one a processor core."""
    target: str | None = None
    """Bundles only: which engine; by default the best that this machine can run."""
    precision: str | None = None
    """Bundles only: the engine's precision."""

    def cut(self, spec: ClipSpec) -> tuple[str, ClipSpec]:
        """Return the test protocol's name and how it cuts the views of a model that was trained on `spec`."""
        if self.views is None:
            return protocol_name(spec), spec
        return ALIASES.get(self.views, self.views), protocol_spec(spec, self.views)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scored on an index."""

    model: str
    """Name of the model."""
    target: str
    """What ran it: pytorch, or the engine's target and precision."""
    views: str
    """Test protocol; the scores of its views are averaged."""
    spec: ClipSpec
    """How it cut the views."""
    scores: NDArray[np.float32]
    """`[videos, classes]`, before any softmax."""
    labels: NDArray[np.int64]
    """`[videos]`, true classes."""
    names: tuple[str, ...]
    """Label names in the order of the scores."""
    ids: tuple[str, ...]
    """The videos' ids in the index, in the order of the scores."""
    seconds: float
    """Wall time, decoding included."""
    bad_videos: list[Refused] = field(default_factory=list)
    """Videos that could not be read and so do not count."""

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
            "frame": {"height": self.spec.height, "width": self.spec.width},
            "seconds": self.seconds,
            **metrics.summary(self.scores, self.labels, names=self.names),
            "predictions": [
                {"id": video, "label": self.names[label], "predicted": self.names[answer]}
                for video, label, answer in zip(self.ids, self.labels, predicted, strict=True)
            ],
            "bad_videos": [{"path": bad.path, "reason": bad.reason} for bad in self.bad_videos],
        }

"""What an evaluation is asked and what it answers: plain data, so that `--help` is instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.pipeline.clip.protocols import ALIASES, PROTOCOLS, ViewsOption, paper_views, protocol_name, protocol_spec
from flowless.pipeline.clip.spec import Average, ClipSpec
from flowless.pipeline.dataset.index import Refused
from flowless.train.evaluation import metrics


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How an evaluation runs."""

    views: ViewsOption | None = None
    """Test protocol: paper (of a checkpoint: the one that its recipe names), or a name. Of the model's own frame size: one-view (or
    centre), two-clip, dense (10 clips), consecutive, three-crop, three-crop-two-clip. As large as the resized frame's short side (256):
    full-resolution (2 clips), and of 3 crops three-view, six-view (2 clips), thirty-view (10 dense clips), three-consecutive,
    thirty-consecutive (10 clips). Crops as large as that, shrunk to the model's own size: thirty-draw (3 crops x 10 random clips).
    Default: as the model says."""
    average: Average | None = None
    """What is averaged over a video's views: logits, or softmax. Default: as the protocol says, or else the model."""
    batch_size: int = 16
    """Views that run together; those of one video go in several batches where they are more."""
    threads: int | None = None
    """Threads that decode; by default one a processor core."""
    target: str | None = None
    """Bundles only: which engine; by default the best that this machine can run."""
    precision: str | None = None
    """Bundles only: the engine's precision."""

    def cut(self, spec: ClipSpec, *, recipe: Mapping[str, Any] | None = None) -> tuple[str, ClipSpec]:
        """Return the test protocol's name and how it cuts the views of a model that was trained on `spec`.

        Args:
            spec: What the model says.
            recipe: The recipe's fields where the model is a checkpoint; a bundle has none.

        Raises:
            FlowlessError: The protocol does not fit the model, or `paper` was asked for where no recipe names one.
        """
        if self.views == "paper" and recipe is None:
            raise FlowlessError(
                f"views is 'paper', and a bundle keeps no recipe that could name the paper's protocol. Evaluate the checkpoint, or choose "
                f"one of {', '.join(PROTOCOLS)}."
            )
        views = paper_views(recipe or {}) if self.views == "paper" else self.views
        name, found = (protocol_name(spec), spec) if views is None else (ALIASES.get(views, views), protocol_spec(spec, views))
        return name, replace(found, average=self.average or found.average)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scored on an index."""

    model: str
    """Name of the model."""
    target: str
    """What ran it: pytorch, or the engine's target and precision."""
    views: str
    """Test protocol."""
    spec: ClipSpec
    """How it cut the views, and averaged their scores."""
    scores: NDArray[np.float32]
    """`[videos, classes]`, averaged over the views by `spec.average`; their softmax are the probabilities."""
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
            "average": self.spec.average,
            "frame": {"height": self.spec.height, "width": self.spec.width},
            "seconds": self.seconds,
            **metrics.summary(self.scores, self.labels, names=self.names),
            "predictions": [
                {"id": video, "label": self.names[label], "predicted": self.names[answer]}
                for video, label, answer in zip(self.ids, self.labels, predicted, strict=True)
            ],
            "bad_videos": [{"path": bad.path, "reason": bad.reason} for bad in self.bad_videos],
        }

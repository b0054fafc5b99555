"""The score of a video from the scores of its views, by the average that its ClipSpec names. NumPy alone: engines use it, too."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowless.pipeline.clip.spec import Average


class ViewAverage:
    """Scores averaged over views that come one after another, or some at a time.

    `logits` is the mean of the scores (PAN's published code, TSN's and TSM's). `softmax` is the logarithm of the mean of the views'
    softmax (STM, section 4.2: "the averaged softmax scores of all clips"; Dynamic Appearance, appendix A), so that the softmax of the
    result are the averaged probabilities and whatever ranks scores ranks those. Disentangling names no average.
    The scores of a single view stay as they are.

    Attributes:
        count: Views so far.
    """

    def __init__(self, average: Average) -> None:
        self.count = 0
        self._average: Average = average
        self._only: NDArray[np.float64] | None = None
        self._total: NDArray[np.float64] | None = None

    def add(self, scores: ArrayLike) -> ViewAverage:
        """Add views: `[views, classes]`, or `[..., views, classes]` with the same leading axes every time. Returns itself."""
        rows = np.moveaxis(np.asarray(scores, np.float64), -2, 0)
        with np.errstate(invalid="ignore"):  # scores that are no numbers stay none, and whoever uses them refuses them
            for row in rows:
                value, join = (row, np.add) if self._average == "logits" else (_log_softmax(row), np.logaddexp)
                self._only = row if self.count == 0 and self._average == "softmax" else None
                self._total = value if self._total is None else join(self._total, value)
                self.count += 1
        return self

    @property
    def scores(self) -> NDArray[np.float32]:
        """The average so far, float32 `[..., classes]`; there must be a view."""
        assert self._total is not None
        if self._only is not None:
            return self._only.astype(np.float32)
        mean = self._total / self.count if self._average == "logits" else self._total - np.log(self.count)
        return mean.astype(np.float32)


def average_views(scores: ArrayLike, average: Average) -> NDArray[np.float32]:
    """Average scores `[..., views, classes]` over the views: float32 `[..., classes]`."""
    return ViewAverage(average).add(scores).scores


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

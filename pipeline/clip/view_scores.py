"""Video scores: the average over the scores of its views that ClipSpec.average selects. Engines use it, so it needs only NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowless.pipeline.clip.spec import Average


class ViewAverage:
    """Running average of scores over views, which may be added one or several at a time.

    `logits` is the mean of the scores (PAN's published code, TSN's and TSM's). `softmax` is the logarithm of the mean of the views'
    softmax (STM, section 4.2: "the averaged softmax scores of all clips"; Dynamic Appearance, appendix A), so that the softmax of the
    result gives the averaged probabilities and ranking the result ranks those. The scores of a single view are returned unchanged.

    Attributes:
        count: Number of views added.
    """

    def __init__(self, average: Average) -> None:
        self.count = 0
        self._average: Average = average
        self._only: NDArray[np.float64] | None = None
        self._total: NDArray[np.float64] | None = None

    def add(self, scores: ArrayLike) -> ViewAverage:
        """Add views, `[views, classes]`, or `[..., views, classes]` with the same leading axes every time; return self."""
        rows = np.moveaxis(np.asarray(scores, np.float64), -2, 0)
        with np.errstate(invalid="ignore"):  # NaN and infinity propagate; the metrics reject them
            for row in rows:
                value, join = (row, np.add) if self._average == "logits" else (_log_softmax(row), np.logaddexp)
                self._only = row if self.count == 0 and self._average == "softmax" else None
                self._total = value if self._total is None else join(self._total, value)
                self.count += 1
        return self

    @property
    def scores(self) -> NDArray[np.float32]:
        """The average so far, float32 `[..., classes]`; needs at least one view."""
        assert self._total is not None
        if self._only is not None:
            return self._only.astype(np.float32)
        mean = self._total / self.count if self._average == "logits" else self._total - np.log(self.count)
        return mean.astype(np.float32)


def average_views(scores: ArrayLike, average: Average) -> NDArray[np.float32]:
    """Average scores `[..., views, classes]` over the views; returns float32 `[..., classes]`."""
    return ViewAverage(average).add(scores).scores


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

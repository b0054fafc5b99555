"""Which actions a system mistakes for their own reversal: what is behind a top-1 that is too low."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.synthetic.scene import PAIRS
from flowless.train.evaluation.evaluate import evaluate
from flowless.train.evaluation.options import EvaluationOptions


def pair_accuracies(checkpoint: Path, val: DatasetIndex) -> dict[str, float]:
    """Return the top-1 of each pair of actions, such as `right / left`, on the videos of both."""
    found = evaluate(checkpoint, val, options=EvaluationOptions(batch_size=32))
    return by_pair(found.scores.argmax(1), found.labels, found.names)


def by_pair(answers: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str]) -> dict[str, float]:
    """Return the top-1 of each pair of actions of which there are videos.

    Args:
        answers: Predicted class of each video, `[K]`.
        labels: Its own, `[K]`.
        names: The classes.
    """
    right, shares = answers == labels, {}
    for pair in PAIRS:
        own = np.array([names[label] in pair for label in labels])
        if own.any():
            shares[" / ".join(pair)] = round(float(right[own].mean()), 4)
    return shares

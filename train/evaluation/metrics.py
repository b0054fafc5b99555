"""Accuracy from scores, in NumPy alone, so that evaluating an engine needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowless.errors import FlowlessError


def top_k(scores: ArrayLike, labels: ArrayLike, *, k: int) -> float:
    """Return the share of videos whose label is among the k highest scores.

    A label that ties with the k-th score counts only if fewer than k classes score strictly higher or tie before it in
    class order, as in a stable sort.

    Args:
        scores: `[V, C]`.
        labels: `[V]`, class indices.
        k: At least 1; with k of at least C every video counts as right.
    """
    scores, labels = _checked(scores, labels)
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1])[None] < labels[:, None]
    rank = (scores > own).sum(1) + ((scores == own) & earlier).sum(1)
    return float((rank < k).mean())


def top1(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of videos whose label has the highest score."""
    return top_k(scores, labels, k=1)


def top5(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of videos whose label is among the five highest scores."""
    return top_k(scores, labels, k=5)


def confusion_matrix(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.int64]:
    """Count videos by true label (rows) and predicted label (columns): `[C, C]`."""
    scores, labels = _checked(scores, labels)
    matrix = np.zeros((scores.shape[1],) * 2, np.int64)
    np.add.at(matrix, (labels, scores.argmax(1)), 1)
    return matrix


def mean_class_accuracy(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean over classes of the accuracy on their videos; classes without videos do not count."""
    matrix = confusion_matrix(scores, labels)
    counts = matrix.sum(1)
    return float((matrix.diagonal()[counts > 0] / counts[counts > 0]).mean())


def summary(scores: ArrayLike, labels: ArrayLike, *, names: Sequence[str]) -> dict[str, Any]:
    """Return every figure as plain values: top1, top5, mean_class_accuracy, per_class, confusion, labels, videos."""
    matrix = confusion_matrix(scores, labels)
    if len(names) != len(matrix):
        raise FlowlessError(f"metrics: {len(names)} label names for scores of {len(matrix)} classes; the numbers must be equal.")
    counts = matrix.sum(1)
    return {
        "videos": int(counts.sum()),
        "top1": top1(scores, labels),
        "top5": top5(scores, labels),
        "mean_class_accuracy": mean_class_accuracy(scores, labels),
        "per_class": {
            name: {"videos": int(count), "accuracy": float(row[i] / count) if count else None}
            for i, (name, row, count) in enumerate(zip(names, matrix, counts, strict=True))
        },
        "labels": list(names),
        "confusion": matrix.tolist(),
    }


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise FlowlessError(
            f"metrics: scores {list(scores.shape)} and labels {list(labels.shape)}; they must be [videos, classes] and [videos], "
            f"with at least one video."
        )
    if not np.isfinite(scores).all():
        broken = int((~np.isfinite(scores)).any(1).sum())
        raise FlowlessError(f"metrics: {broken} of {len(scores)} videos have scores that are NaN or infinite.")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise FlowlessError(
            f"metrics: labels from {labels.min()} to {labels.max()} for scores of {scores.shape[1]} classes; they must be from 0 to "
            f"{scores.shape[1] - 1}."
        )
    return scores, labels.astype(np.int64)

"""Accuracies, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from flowless.errors import FlowlessError
from flowless.train.evaluation import metrics

SCORES = np.array([[3, 2, 1, 0], [0, 5, 1, 2], [1, 2, 3, 0], [9, 1, 2, 3], [0, 1, 2, 3]], float)
LABELS = np.array([0, 1, 1, 3, 0])


def test_metrics_by_hand():
    assert metrics.top1(SCORES, LABELS) == pytest.approx(2 / 5)
    assert metrics.top_k(SCORES, LABELS, k=2) == pytest.approx(4 / 5)
    assert metrics.top5(SCORES, LABELS) == 1
    # Class 0: 1 of 2, class 1: 1 of 2, class 3: 0 of 1; class 2 has no video.
    assert metrics.mean_class_accuracy(SCORES, LABELS) == pytest.approx((0.5 + 0.5 + 0) / 3)
    matrix = metrics.confusion_matrix(SCORES, LABELS)
    assert matrix.tolist() == [[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_ties_do_not_count_as_right():
    assert metrics.top1(np.zeros((4, 4)), [0, 1, 2, 3]) == 0.25
    assert metrics.top_k(np.zeros((4, 4)), [0, 1, 2, 3], k=2) == 0.5


def test_top1_is_the_trace_of_the_confusion_matrix():
    random = np.random.default_rng(0)
    scores, labels = random.standard_normal((200, 7)), random.integers(0, 7, 200)
    assert metrics.top1(scores, labels) == pytest.approx(metrics.confusion_matrix(scores, labels).trace() / 200)


def test_summary_counts_every_video():
    summary = metrics.summary(SCORES, LABELS, names=["a", "b", "c", "d"])
    assert summary["per_class"]["c"] == {"videos": 0, "accuracy": None}
    assert summary["videos"] == 5
    assert sum(map(sum, summary["confusion"])) == 5


@pytest.mark.parametrize(
    ("scores", "labels", "named"),
    [
        (np.zeros((0, 3)), [], "at least one video"),
        (np.zeros((2, 3)), [0], r"\[2, 3\]"),
        (np.zeros((2, 3)), [0, 3], "labels from 0 to 3"),
        (np.array([[np.nan, 0], [1, 0]]), [0, 1], "1 of 2 videos"),
    ],
)
def test_invalid_scores_and_labels_are_refused(scores, labels, named):
    with pytest.raises(FlowlessError, match=named):
        metrics.top1(scores, labels)

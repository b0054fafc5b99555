"""Video scores from view scores: average of logits or softmax, incremental, and without overflow."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from flowless.pipeline.clip.spec import Average
from flowless.pipeline.clip.view_scores import ViewAverage, average_views

#: By the mean logits (3, 2, 0) class 0 is best, by the mean softmax class 1.
SCORES = np.array([[9, 0, 0], [0, 3, 0], [0, 3, 0]], np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores.astype(np.float64))
    return raised / raised.sum(-1, keepdims=True)


def test_logits_and_softmax_can_differ():
    assert average_views(SCORES, "logits").tolist() == [3, 2, 0]
    found = average_views(SCORES, "softmax")
    assert found.argmax() == 1
    np.testing.assert_allclose(np.exp(found), softmax(SCORES).mean(0), rtol=1e-6)
    np.testing.assert_allclose(softmax(found), softmax(SCORES).mean(0), rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("average", get_args(Average))
def test_one_view_is_unchanged(average):
    assert average_views(SCORES[:1], average).tolist() == [9, 0, 0]
    batch = np.random.default_rng(0).normal(size=(4, 1, 5)).astype(np.float32)
    assert np.array_equal(average_views(batch, average), batch[:, 0])


@pytest.mark.parametrize("average", get_args(Average))
def test_incremental_average(average):
    scores = np.random.default_rng(1).normal(0, 4, (6, 30, 7)).astype(np.float32)
    parts = ViewAverage(average)
    for start, stop in ((0, 1), (1, 1), (1, 9), (9, 30)):
        parts.add(scores[:, start:stop])
    assert parts.count == 30
    expected = scores.mean(1, dtype=np.float64) if average == "logits" else np.log(softmax(scores).mean(1))
    np.testing.assert_allclose(parts.scores, expected, atol=1e-5)
    np.testing.assert_allclose(average_views(scores, average), expected, atol=1e-5)


def test_large_logits_give_finite_scores():
    scores = np.array([[1000, 0, -1000], [1000, 0, -1000]], np.float32)
    found = average_views(scores, "softmax")
    assert np.isfinite(found).all(), "metrics reject NaN"
    assert found.tolist() == [0, -1000, -2000]
    assert np.isnan(average_views([[np.nan, 0.0], [1.0, 0.0]], "softmax")).any(), "NaN must not be hidden"

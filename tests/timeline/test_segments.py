"""Segments from probabilities: examples by hand, and an independent reference that reads the timeline moment by moment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowless.engines.timeline.segments import Steps, best_segments, class_segments, clock, steps_of, suppress, temporal_iou

CLASSES = "abc"


def steps(text: str, share: float = 0.9) -> Steps:
    """Return one-second steps with the class that each letter names; a dot has none."""
    rows = [[share if letter == name else 0.05 for name in CLASSES] for letter in text]
    return Steps(np.arange(len(text) + 1.0), np.array(rows))


def shown(spans: list) -> list[tuple[str, float, float]]:
    return [(CLASSES[span.index], span.start, span.end) for span in spans]


def test_a_step_has_the_mean_of_the_windows_that_cover_it() -> None:
    made = steps_of([0, 1, 2], [2, 3, 4], [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    np.testing.assert_array_equal(made.edges, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(made.shares[:, 0], [1.0, 0.75, 0.25, 0.0])


def test_between_windows_there_is_nothing() -> None:
    made = steps_of([0, 3], [1, 4], [[1.0], [1.0]])
    np.testing.assert_array_equal(made.edges, [0, 1, 3, 4])
    np.testing.assert_array_equal(made.shares[:, 0], [1, 0, 1])


def test_borders_that_differ_by_rounding_are_one() -> None:
    made = steps_of([0, 3 * 0.1], [0.3, 0.9], [[0.2], [0.8]])
    np.testing.assert_allclose(made.edges, [0, 0.3, 0.9])
    np.testing.assert_allclose(made.shares[:, 0], [0.2, 0.8])


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_steps_are_the_means_at_every_moment(count: int, window: int, stride: int, seed: int) -> None:
    starts = stride * np.arange(count) / 8
    ends = starts + window / 8
    shares = np.random.default_rng(seed).dirichlet([1, 1, 1], size=count)
    made = steps_of(starts, ends, shares)
    for moment in np.arange(0.01, ends[-1], 0.125):
        covering = [row for start, end, row in zip(starts, ends, shares, strict=True) if start <= moment < end]
        step = int(np.searchsorted(made.edges, moment, side="right")) - 1
        np.testing.assert_allclose(made.shares[step], np.mean(covering, axis=0) if covering else 0, atol=1e-12)


def test_the_best_label_over_time() -> None:
    found = best_segments(steps("..aaabb.c"), threshold=0.5)
    assert shown(found) == [("a", 2, 5), ("b", 5, 7), ("c", 8, 9)]
    assert all(span.score == pytest.approx(0.9) for span in found)
    assert best_segments(steps("..aaabb.c"), threshold=0.95) == []


def test_a_class_can_be_background() -> None:
    assert shown(best_segments(steps("abab"), threshold=0.5, background=[1])) == [("a", 0, 1), ("a", 2, 3)]
    assert shown(class_segments(steps("abab"), threshold=0.5, nms=0.5, background=[1])) == [("a", 0, 1), ("a", 2, 3)]


def test_neighbours_of_one_label_merge_over_background_alone() -> None:
    assert shown(best_segments(steps("a..a...a"), threshold=0.5, merge=2)) == [("a", 0, 4), ("a", 7, 8)]
    assert shown(best_segments(steps("a.b.a"), threshold=0.5, merge=9)) == [("a", 0, 1), ("b", 2, 3), ("a", 4, 5)]


def test_what_is_too_short_goes_and_lets_its_neighbours_merge() -> None:
    assert shown(best_segments(steps("aaabaa.b"), threshold=0.5, merge=1, shortest=2)) == [("a", 0, 6)]
    # What merging has made long enough stays.
    assert shown(best_segments(steps("a.a"), threshold=0.5, merge=1, shortest=3)) == [("a", 0, 3)]


def test_a_merged_segment_has_the_mean_over_its_gap_too_and_its_own_peak() -> None:
    made = steps("a.a")
    made.shares[2, 0] = 0.95
    (found,) = best_segments(made, threshold=0.5, merge=1)
    assert found.score == pytest.approx((0.9 + 0.05 + 0.95) / 3)
    assert found.peak == 2.5


def test_steps_of_different_lengths_weigh_by_time() -> None:
    made = Steps(np.array([0.0, 1.0, 4.0]), np.array([[0.6], [0.8]]))
    assert best_segments(made, threshold=0.5)[0].score == pytest.approx((0.6 + 3 * 0.8) / 4)


def reference_best(made: Steps, threshold: float, background: list[int], merge: float, shortest: float) -> list[tuple[int, float, float]]:
    """Read one-second steps into a list of labels, merge by rewriting the gaps, and drop by rewriting the runs."""
    line = []
    for row in made.shares.tolist():
        best = max(range(len(row)), key=lambda index: row[index])
        line.append(best if row[best] >= threshold and best not in background else None)

    def runs() -> list[tuple[int | None, int, int]]:
        ends = list(itertools.accumulate(len(list(group)) for _, group in itertools.groupby(line)))
        return [(line[end - 1], start, end) for start, end in zip([0, *ends], ends, strict=False)]

    for _ in range(2):
        found = runs()
        for before, gap, after in zip(found, found[1:], found[2:], strict=False):
            if gap[0] is None and before[0] == after[0] and gap[2] - gap[1] <= merge:
                line[gap[1] : gap[2]] = [before[0]] * (gap[2] - gap[1])
        for label, start, end in runs():
            if label is not None and end - start < shortest:
                line[start:end] = [None] * (end - start)
    return [(label, start, end) for label, start, end in runs() if label is not None]


@given(st.text("abc.", min_size=1, max_size=24), st.integers(0, 3), st.integers(0, 3), st.sampled_from([[], [0], [1, 2]]))
def test_the_best_labels_are_those_of_the_reference(text: str, merge: int, shortest: int, background: list[int]) -> None:
    made = steps(text)
    found = best_segments(made, threshold=0.5, background=background, merge=merge, shortest=shortest)
    assert [(span.index, span.start, span.end) for span in found] == reference_best(made, 0.5, background, merge, shortest)


def test_several_actions_at_once() -> None:
    made = Steps(np.arange(6.0), np.array([[0.0, 0.4], [0.45, 0.45], [0.45, 0.45], [0.45, 0.0], [0.0, 0.0]]))
    found = class_segments(made, threshold=0.3, nms=0.5)
    assert sorted(shown(found)) == [("a", 1, 4), ("b", 0, 3)]
    assert [span.score for span in found] == sorted((span.score for span in found), reverse=True)


def peaks(*shares: float) -> Steps:
    return Steps(np.arange(len(shares) + 1.0), np.array(shares)[:, None])


def test_a_detection_ends_where_half_of_its_peak_is_passed() -> None:
    made = peaks(0.0, 0.3, 0.5, 0.9, 0.46, 0.44, 0.0, 0.1, 0.2, 0.1, 0.0)
    assert shown(class_segments(made, threshold=0.15, nms=0.5)) == [("a", 2, 5), ("a", 7, 10)]
    assert shown(class_segments(made, threshold=0.3, nms=0.5)) == [("a", 2, 5)]
    assert shown(class_segments(made, threshold=0.15, nms=0.5, shortest=4)) == []


def test_a_low_plateau_around_a_peak_is_a_candidate_of_its_own() -> None:
    made = peaks(0.0, 0.3, 0.31, 0.3, 0.9, 0.9, 0.3, 0.3, 0.0)
    assert shown(class_segments(made, threshold=0.2, nms=0.5)) == [("a", 4, 6), ("a", 1, 8)]
    assert shown(class_segments(made, threshold=0.2, nms=0.2)) == [("a", 4, 6)], "their IoU is 2/7"


def test_a_dip_of_a_detection_is_merged() -> None:
    made = peaks(0.8, 0.1, 0.9, 0.1, 0.1, 0.8)
    assert shown(class_segments(made, threshold=0.5, nms=0.5)) == [("a", 2, 3), ("a", 0, 1), ("a", 5, 6)]
    assert shown(class_segments(made, threshold=0.5, nms=0.5, merge=1)) == [("a", 5, 6), ("a", 0, 3)]


@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 20))
def test_averaged_windows_of_a_perfect_classifier_give_its_borders(length: int, window: int, before: int) -> None:
    """However long the action is, as long as it is not shorter than the window: a window is action if half of it or more is."""
    action, total = (before + window, before + window + window + length), before + 4 * window + length
    starts = np.arange(0, 2 * (total - window) + 1) / 2
    shares = [[float(min(start + window, action[1]) - max(start, action[0]) >= window / 2)] for start in starts]
    (found,) = class_segments(steps_of(starts, starts + window, shares), threshold=0.5, nms=0.5)
    assert abs(found.start - action[0]) <= 0.5
    assert abs(found.end - action[1]) <= 0.5


def test_nothing_at_all() -> None:
    empty = Steps(np.array([0.0, 1.0]), np.zeros((1, 3)))
    assert best_segments(empty, threshold=0.1) == []
    assert class_segments(empty, threshold=0.1, nms=0.5) == []
    assert suppress([], [], iou=0.5) == []


def test_temporal_iou() -> None:
    found = temporal_iou((1.0, 3.0), [(1, 3), (2, 4), (3, 5), (0, 9), (1.5, 2.0)])
    np.testing.assert_allclose(found, [1, 1 / 3, 0, 2 / 9, 1 / 4])
    assert temporal_iou((1.0, 1.0), [(1.0, 1.0)]).tolist() == [0.0]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10), st.integers(0, 5)), max_size=14), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_suppression_is_that_of_the_definition(items: list[tuple[int, int, int]], limit: float) -> None:
    spans = [(float(start), float(start + length)) for start, length, _ in items]
    scores = [float(score) for *_, score in items]
    kept: list[int] = []
    for one in sorted(range(len(items)), key=lambda at: (-scores[at], at)):
        overlaps = []
        for other in kept:
            moments = [set(range(2 * int(start), 2 * int(end))) for start, end in (spans[one], spans[other])]
            overlaps.append(len(moments[0] & moments[1]) / len(moments[0] | moments[1]))
        if all(overlap <= limit for overlap in overlaps):
            kept.append(one)
    assert suppress(spans, scores, iou=limit) == kept


def test_times_as_text() -> None:
    assert [clock(seconds) for seconds in (0, 7.254, 59.999, 3723.5)] == ["0:00.00", "0:07.25", "1:00.00", "1:02:03.50"]

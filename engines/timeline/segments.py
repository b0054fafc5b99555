"""Segments of a timeline from the probabilities of its windows: pure functions on NumPy arrays.

Two readings of the same probabilities:

- `best_segments`: one label at a time. Each step has its most probable label, or is background.
- `class_segments`: temporal action detection, each label on its own. As the baselines of THUMOS'14 and later do (Oneata, Verbeek, Schmid,
  The LEAR submission at THUMOS 2014; Shou, Wang, Chang, Temporal Action Localization in Untrimmed Videos via Multi-stage CNNs, CVPR 2016),
  it scores sliding windows and keeps the best of overlapping candidates by non-maximum suppression. Their candidates are windows of several
  lengths. Here the windows have one length, and a candidate is a peak of the label's probability with what is at least half as high
  around it: at the border of an action, half of what the windows cover is action, so the mean over them passes half of its peak there,
  however long the action is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
#: Part of a peak's height at which a candidate ends.
_HALF = 0.5
#: Seconds that rounding may add to a time.
_ROUNDING = 1e-9


class Steps(NamedTuple):
    """Probabilities over time, constant within each step."""

    edges: Floats
    """`[S + 1]`: the steps' borders, ascending, in seconds."""
    shares: Floats
    """`[S, classes]`: probability of each class; 0 where no window covers the step."""


@dataclass(frozen=True)
class Span:
    """A segment of one class."""

    start: float
    """Its first moment, in seconds."""
    end: float
    """Its end, in seconds."""
    index: int
    """The class."""
    score: float
    """Mean probability of the class from start to end."""
    peak: float
    """Middle of the step where the class is the most probable, in seconds."""


def steps_of(starts: ArrayLike, ends: ArrayLike, shares: ArrayLike) -> Steps:
    """Return the mean over the windows that cover each step; a step lies between two neighbouring borders of windows.

    Args:
        starts: `[W]`, seconds; W at least 1.
        ends: `[W]`, seconds, each after its start.
        shares: `[W, classes]`, the windows' probabilities.
    """
    first, last, values = (np.asarray(array, np.float64) for array in (starts, ends, shares))
    edges = np.unique(np.concatenate([first, last]))
    # Borders that differ by rounding alone are one.
    edges = edges[np.concatenate([[True], np.diff(edges) > _ROUNDING])]
    sums, counts = np.zeros((len(edges) - 1, values.shape[1])), np.zeros(len(edges) - 1)
    for begin, end, row in zip(*(np.searchsorted(edges, border - _ROUNDING) for border in (first, last)), values, strict=True):
        sums[begin:end] += row
        counts[begin:end] += 1
    return Steps(edges, sums / np.maximum(counts, 1)[:, None])


def best_segments(
    steps: Steps, *, threshold: float, background: Sequence[int] = (), merge: float = 0.0, shortest: float = 0.0
) -> list[Span]:
    """Return the segments of the most probable class of each step, in their order; they do not overlap.

    A step is background where its most probable class is one of `background` or less probable than `threshold`. Segments of one class
    with at most `merge` seconds of background between them become one; then those shorter than `shortest` are left out, and what
    became neighbours by that is merged again.
    """
    best = steps.shares.argmax(axis=1)
    best[(steps.shares.max(axis=1) < threshold) | np.isin(best, background)] = -1
    borders = np.flatnonzero(np.diff(best)) + 1
    runs = [(int(begin), int(end)) for begin, end in zip([0, *borders], [*borders, len(best)], strict=True) if best[begin] >= 0]
    classes = {run[0]: int(best[run[0]]) for run in runs}
    found: list[tuple[int, int]] = []
    for part in (runs, None):
        found = _merged(steps.edges, found if part is None else part, classes, merge)
        found = [run for run in found if _long_enough(steps.edges, run, shortest)]
    return [_span(steps, run, classes[run[0]]) for run in found]


def class_segments(
    steps: Steps, *, threshold: float, nms: float, background: Sequence[int] = (), merge: float = 0.0, shortest: float = 0.0
) -> list[Span]:
    """Return the detections of every class that is not one of `background`, the highest scores first.

    A class's candidates are its peaks of at least `threshold`, each with the steps around it that are at least half as high; `merge`
    seconds of lower ones, at most, do not end it, and those shorter than `shortest` are left out. Of two candidates of a class with a
    temporal IoU above `nms` the one with the lower score is left out.
    """
    found: list[Span] = []
    for index in np.flatnonzero(steps.shares.max(axis=0, initial=0.0) >= threshold).tolist():
        if index not in background:
            runs = _runs_at_peaks(steps, index, threshold=threshold, merge=merge)
            spans = [_span(steps, run, index) for run in runs if _long_enough(steps.edges, run, shortest)]
            found += [spans[one] for one in suppress([(span.start, span.end) for span in spans], [span.score for span in spans], iou=nms)]
    return sorted(found, key=lambda span: (-span.score, span.start))


def _runs_at_peaks(steps: Steps, index: int, *, threshold: float, merge: float) -> list[tuple[int, int]]:
    """Return the run of steps around each peak of a class, from the highest on; a peak within the run of a higher one has none."""
    shares = steps.shares[:, index]
    rising, not_rising = np.diff(shares, prepend=-1.0) > 0, np.diff(shares, append=-1.0) <= 0
    peaks = np.flatnonzero(rising & not_rising & (shares >= threshold))
    covered, runs = np.zeros(len(shares), bool), []
    for peak in peaks[np.argsort(-shares[peaks], kind="stable")].tolist():
        if covered[peak]:
            continue
        high = np.concatenate([[False], shares >= _HALF * shares[peak], [False]])
        borders = np.flatnonzero(high[1:] != high[:-1])
        level = list(zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True))
        joined = _merged(steps.edges, level, dict.fromkeys((run[0] for run in level), index), merge)
        run = next(run for run in joined if run[0] <= peak < run[1])
        covered[run[0] : run[1]] = True
        runs.append(run)
    return runs


def temporal_iou(one: tuple[float, float], others: ArrayLike) -> Floats:
    """Return the intersection over union of an interval (start, end) with each of others, `[K, 2]`, as float64 `[K]`."""
    spans = np.asarray(others, np.float64).reshape(-1, 2)
    shared = np.clip(np.minimum(spans[:, 1], one[1]) - np.maximum(spans[:, 0], one[0]), 0.0, None)
    union = (one[1] - one[0]) + (spans[:, 1] - spans[:, 0]) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def suppress(spans: Sequence[tuple[float, float]], scores: Sequence[float], *, iou: float) -> list[int]:
    """Return the positions of the spans that non-maximum suppression keeps, the highest score first; of equal scores the first one.

    Args:
        spans: (start, end) of each, in seconds.
        scores: Score of each.
        iou: A span goes where its temporal IoU with one of a higher score that stays is above this.
    """
    borders = np.asarray(spans, np.float64).reshape(-1, 2)
    left, kept = np.argsort(-np.asarray(scores, np.float64), kind="stable"), []
    while len(left):
        best, rest = int(left[0]), left[1:]
        kept.append(best)
        left = rest[temporal_iou((float(borders[best, 0]), float(borders[best, 1])), borders[rest]) <= iou]
    return kept


def clock(seconds: float) -> str:
    """Return a time as text, such as 0:07.25 or 1:02:03.50."""
    hundredths = round(100 * seconds)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // 100:02d}.{rest % 100:02d}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def _merged(edges: Floats, runs: Iterable[tuple[int, int]], classes: dict[int, int], most: float) -> list[tuple[int, int]]:
    """Join neighbouring runs [first step, last step) of one class with a gap of at most `most` seconds; `classes` is by first step."""
    joined: list[tuple[int, int]] = []
    for first, last in runs:
        before = joined[-1] if joined else None
        if before and classes[before[0]] == classes[first] and edges[first] - edges[before[1]] <= most + _ROUNDING:
            joined[-1] = (before[0], last)
        else:
            joined.append((first, last))
    return joined


def _long_enough(edges: Floats, run: tuple[int, int], shortest: float) -> bool:
    return edges[run[1]] - edges[run[0]] >= shortest - _ROUNDING


def _span(steps: Steps, run: tuple[int, int], index: int) -> Span:
    first, last = run
    start, end = float(steps.edges[first]), float(steps.edges[last])
    peak = first + int(steps.shares[first:last, index].argmax())
    middle = float(steps.edges[peak] + steps.edges[peak + 1]) / 2
    return Span(start=start, end=end, index=index, score=_mean(steps, start, end, index), peak=middle)


def _mean(steps: Steps, start: float, end: float, index: int) -> float:
    """Return the mean probability of a class between two times; 0 where they do not differ."""
    lengths = np.clip(np.minimum(steps.edges[1:], end) - np.maximum(steps.edges[:-1], start), 0.0, None)
    total = lengths.sum()
    return float(lengths @ steps.shares[:, index] / total) if total > 0 else 0.0

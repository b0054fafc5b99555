"""Average precision of temporal detections, as ActivityNet's evaluation computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flowless.engines.timeline.segments import temporal_iou


class Part(NamedTuple):
    """A part of a video: the truth, or a detection with its score."""

    video: str
    label: str
    start: float
    end: float
    score: float = 1.0


def average_precision(found: Sequence[Part], truth: Sequence[Part], *, iou: float) -> float:
    """Return the average precision of the detections of one class; 0 where there are none.

    From the highest score on, a detection takes the part of its video with the largest temporal IoU that no earlier one has taken; where
    that is below `iou`, it is false. The area below precision over recall is interpolated at all points: each recall has the
    highest precision at that recall or above (Caba Heilbron et al., ActivityNet, CVPR 2015; PASCAL VOC since 2010).

    Args:
        found: The detections of the class in all videos; of equal scores the first counts first.
        truth: Its parts, at least one.
        iou: Least temporal IoU of a detection that is true.
    """
    left: dict[str, list[Part]] = {}
    for part in truth:
        left.setdefault(part.video, []).append(part)
    hits = []
    for part in sorted(found, key=lambda one: -one.score):
        there = left.get(part.video, [])
        overlaps = temporal_iou((part.start, part.end), [(one.start, one.end) for one in there])
        hits.append(bool(len(there)) and bool(overlaps.max() >= iou))
        if hits[-1]:
            del there[int(overlaps.argmax())]
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(highest[np.asarray(hits, bool)].sum() / len(truth))


def average_precisions(found: Sequence[Part], truth: Sequence[Part], *, iou: float) -> Mapping[str, float]:
    """Return the average precision of each class that has parts in the truth; their mean is the mean average precision (mAP)."""
    labels = sorted({part.label for part in truth})
    return {
        label: average_precision([part for part in found if part.label == label], [part for part in truth if part.label == label], iou=iou)
        for label in labels
    }

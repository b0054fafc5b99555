"""Scores of test clips whose frames are in order, reversed and shuffled; and how often actions are mistaken for their opposite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.checkpoints import load_checkpoint
from flowless.train.evaluation import metrics
from flowless.train.evaluation.options import EvaluationOptions
from flowless.train.evaluation.score_videos import score_videos
from flowless.train.loop.index_checks import relabel
from flowless.train.models.backbones.timm_backbones import to_channels_last

#: The orders in which a clip's frames are shown.
ORDERS = ("forwards", "reversed", "shuffled")
SHUFFLE_SEED = 0


@dataclass(frozen=True, kw_only=True)
class OrderScores:
    """A checkpoint's scores of a test set."""

    scores: Mapping[str, NDArray[np.float32]]
    """Order of the frames -> `[videos, classes]`."""
    labels: NDArray[np.int64]
    """`[videos]`, true classes."""
    names: tuple[str, ...]
    """The classes."""
    clip: tuple[int, int] = (1, 1)
    """Segments, and frames of each, that the model saw."""
    unreadable: int = 0
    """Videos that could not be read."""

    def top1(self, order: str) -> float:
        """Return top-1 of the clips in an order."""
        return metrics.top1(self.scores[order], self.labels)


def reorder(clips: NDArray[np.uint8], rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Return clips uint8 `[B, N, m, H, W, 3]` in each of `ORDERS`: all N * m frames of a clip change places, across its segments."""
    frames = clips.reshape(len(clips), -1, *clips.shape[3:])
    shuffled = np.stack([clip[rng.permutation(len(clip))] for clip in frames])
    return [clips, np.ascontiguousarray(frames[:, ::-1]).reshape(clips.shape), shuffled.reshape(clips.shape)]


def score_orders(checkpoint: Path, test: DatasetIndex) -> OrderScores:
    """Score every video of a test set in every order of `ORDERS`, by the model's own ClipSpec.

    Raises:
        FlowlessError: The checkpoint or the index cannot be used, or no video can be read.
    """
    loaded = load_checkpoint(checkpoint)
    network, rng = to_channels_last(loaded.model.eval()), np.random.default_rng(SHUFFLE_SEED)

    def score(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.concatenate([network(torch.from_numpy(part)).float().numpy() for part in reorder(clips, rng)], axis=1)

    with torch.inference_mode():
        found = score_videos(score, relabel(test, loaded.labels), loaded.spec, options=EvaluationOptions())
    return OrderScores(
        scores=dict(zip(ORDERS, np.split(found.scores, len(ORDERS), axis=1), strict=True)),
        labels=found.labels,
        names=loaded.labels,
        clip=(loaded.spec.segments, loaded.spec.frames_per_segment),
        unreadable=len(found.bad_videos),
    )


def count_opposites(runs: Sequence[OrderScores], pairs: Sequence[Sequence[str]], *, order: str = "forwards") -> dict[str, dict[str, int]]:
    """Count what the videos of each action of the pairs were classified as, over all runs.

    Returns:
        Action -> `right`, `opposite` (the other action of its pair) and `other`.
    """
    found = {}
    for own, twin in [each for pair in pairs for each in (pair, pair[::-1])]:
        outcomes = [run.names[label] for run in runs for label in run.scores[order][run.labels == run.names.index(own)].argmax(1)]
        right, opposite = outcomes.count(own), outcomes.count(twin)
        found[own] = {"right": right, "opposite": opposite, "other": len(outcomes) - right - opposite}
    return found


def share(outcomes: Mapping[str, Mapping[str, int]], kind: str) -> float | None:
    """Return the share of the videos in `count_opposites` that were `right` or `opposite`; None if there are none."""
    videos = sum(sum(counts.values()) for counts in outcomes.values())
    return round(sum(counts[kind] for counts in outcomes.values()) / videos, 4) if videos else None

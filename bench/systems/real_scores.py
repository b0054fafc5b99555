"""Scores of a test set's clips in their own order, reversed and shuffled; and which actions are taken for their opposite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.checkpoints import load_checkpoint
from flowless.train.evaluation import metrics
from flowless.train.evaluation.options import EvaluationOptions
from flowless.train.evaluation.score_videos import score_videos
from flowless.train.loop.index_checks import relabel
from flowless.train.models.backbones.timm_backbones import to_channels_last

#: The orders in which a clip's frames are shown.
ORDERS = ("forwards", "reversed", "shuffled")
#: Fixes the shuffled orders.
SHUFFLE_SEED = 0


def reversed_clips(clips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reverse the frames of clips: all N * m of a clip, so segments, and the frames of each, change places with those of the other end.

    Args:
        clips: uint8 `[B, N, m, H, W, 3]`.

    Returns:
        The same frames, same shape: `[b, k, j]` is what `[b, N - 1 - k, m - 1 - j]` was.
    """
    return np.ascontiguousarray(clips[:, ::-1, ::-1])


def shuffled_clips(clips: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Permute the frames of clips: all N * m of a clip, over the borders of segments, each clip in an order of its own.

    Args:
        clips: uint8 `[B, N, m, H, W, 3]`.
        rng: Draws the permutation of `range(N * m)` of each clip, in the clips' order.
    """
    shuffled = np.empty_like(clips)
    for one, clip in zip(shuffled, clips, strict=True):
        frames = clip.reshape(-1, *clip.shape[2:])
        one.reshape(frames.shape)[:] = frames[rng.permutation(len(frames))]
    return shuffled


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A checkpoint's scores of a test set."""

    scores: Mapping[str, NDArray[np.float32]]
    """Order of the frames -> `[videos, classes]`."""
    labels: NDArray[np.int64]
    """`[videos]`, true classes."""
    names: tuple[str, ...]
    """The classes."""
    clip: tuple[int, int]
    """Segments, and frames of each, that the model saw."""

    def top1(self, order: str) -> float:
        """Return the share of videos that are right when their frames are shown in an order."""
        return metrics.top1(self.scores[order], self.labels)

    def of(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Return which videos show one of these actions, `[videos]`."""
        return np.array([self.names[label] in names for label in self.labels])


def score_orders(checkpoints: Sequence[Path], test: DatasetIndex) -> tuple[list[Scored], int]:
    """Score every video of a test set once by each checkpoint, in every order of `ORDERS`.

    Checkpoints that take the same clip see the same pictures: the clip is cut once for all of them and for all orders, by the rule of
    its ClipSpec, and the orders permute what was cut.

    Args:
        checkpoints: Files; all of the same labels.
        test: Labelled videos.

    Returns:
        The scores of each checkpoint, and how many videos could not be read.

    Raises:
        FlowlessError: A checkpoint or the index cannot be used, or no video can be read.
    """
    models = [load_checkpoint(path) for path in checkpoints]
    index = relabel(test, models[0].labels)
    if any(model.labels != models[0].labels for model in models):
        raise FlowlessError("the checkpoints know different labels; score those of one training set together.")
    found: dict[int, Scored] = {}
    bad = 0
    for spec in dict.fromkeys(model.spec for model in models):
        own = [place for place, model in enumerate(models) if model.spec == spec]
        networks = [to_channels_last(models[place].model.eval()) for place in own]
        rng = np.random.default_rng(SHUFFLE_SEED)

        def score(clips: NDArray[np.uint8], *, networks: Any = networks, rng: np.random.Generator = rng) -> NDArray[np.float32]:
            shown = [torch.from_numpy(part) for part in (clips, reversed_clips(clips), shuffled_clips(clips, rng))]
            return torch.cat([network(part).float() for network in networks for part in shown], dim=1).numpy()

        with torch.inference_mode():
            scored = score_videos(score, index, spec, options=EvaluationOptions())
        rows = scored.scores.reshape(len(scored.ids), len(own), len(ORDERS), -1)
        for number, place in enumerate(own):
            scores = {order: rows[:, number, at] for at, order in enumerate(ORDERS)}
            clip = (spec.segments, spec.frames_per_segment)
            found[place] = Scored(scores=scores, labels=scored.labels, names=models[0].labels, clip=clip)
        bad = max(bad, len(scored.bad_videos))
    return [found[place] for place in range(len(models))], bad


def opposite_answers(runs: Sequence[Scored], pairs: Sequence[tuple[str, str]], *, order: str = "forwards") -> dict[str, dict[str, int]]:
    """Count what the videos of each action of the pairs were taken for, over all runs.

    Returns:
        Action -> `right`, `opposite` (taken for the other of its pair) and `other`.
    """
    found = {}
    for own, twin in [each for pair in pairs for each in (pair, pair[::-1])]:
        answers = [run.names[answer] for run in runs for answer in run.scores[order][run.of([own])].argmax(1)]
        right, opposite = answers.count(own), answers.count(twin)
        found[own] = {"right": right, "opposite": opposite, "other": len(answers) - right - opposite}
    return found


def share(answers: Mapping[str, Mapping[str, int]], what: str) -> float | None:
    """Return the share of the videos in `opposite_answers` that were `right`, or taken for the `opposite`; None where there are none."""
    videos = sum(sum(counts.values()) for counts in answers.values())
    return round(sum(counts[what] for counts in answers.values()) / videos, 4) if videos else None

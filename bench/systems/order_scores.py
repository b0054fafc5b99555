"""Scores of test clips whose frames are in order, reversed and shuffled; and a system's row of the result, made of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowless.bench.systems.system_list import SHUFFLE_SEED, SYSTEMS
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.checkpoints import load_checkpoint
from flowless.train.evaluation.metrics import confusion_matrix
from flowless.train.evaluation.options import EvaluationOptions
from flowless.train.evaluation.score_videos import score_videos
from flowless.train.loop.index_checks import relabel
from flowless.train.models.backbones.timm_backbones import to_channels_last

#: The orders in which a clip's frames are shown.
ORDERS = ("forwards", "reversed", "shuffled")
#: Order -> videos by true class (rows) and predicted class (columns).
Confusions = Mapping[str, NDArray[np.int64]]


def reorder(clips: NDArray[np.uint8], rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Return clips uint8 `[B, N, m, H, W, 3]` in each of `ORDERS`: all N * m frames of a clip change places, across its segments."""
    frames = clips.reshape(len(clips), -1, *clips.shape[3:])
    shuffled = np.stack([clip[rng.permutation(len(clip))] for clip in frames])
    return [clips, np.ascontiguousarray(frames[:, ::-1]).reshape(clips.shape), shuffled.reshape(clips.shape)]


def score_orders(checkpoint: Path, test: DatasetIndex) -> Confusions:
    """Classify every video of a test set in every order of `ORDERS`, by the model's own ClipSpec; an unreadable video does not count."""
    loaded = load_checkpoint(checkpoint)
    network, rng = to_channels_last(loaded.model.eval()), np.random.default_rng(SHUFFLE_SEED)

    def score(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.concatenate([network(torch.from_numpy(part)).float().numpy() for part in reorder(clips, rng)], axis=1)

    with torch.inference_mode():
        found = score_videos(score, relabel(test, loaded.labels), loaded.spec, options=EvaluationOptions())
    parts = zip(ORDERS, np.split(found.scores, len(ORDERS), axis=1), strict=True)
    return {order: confusion_matrix(scores, found.labels) for order, scores in parts}


def row_of(
    name: str, runs: Sequence[Confusions], results: Iterable[Mapping[str, Any]], *, labels: Sequence[str], pairs: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return a system's row: figures over its seeds, from what `score_orders` found of each run, and from its result.json."""
    system, first, total = SYSTEMS[name], runs[0]["forwards"], np.sum([run["forwards"] for run in runs], axis=0)
    top1 = {order: [np.trace(run[order]) / run[order].sum() for run in runs] for order in ORDERS}
    by_pair = {" / ".join(pair): share_right(first, labels, pair) for pair in pairs}
    classes = {label: right for label in labels if (right := share_right(total, labels, [label])) is not None}
    opposites = {}
    for own, twin in [each for pair in pairs for each in (pair, pair[::-1])]:
        counts = total[labels.index(own)]
        right, opposite = int(counts[labels.index(own)]), int(counts[labels.index(twin)])
        opposites[own] = {"right": right, "opposite": opposite, "other": int(counts.sum()) - right - opposite}
    return {
        "system": name,
        "model": system.model,
        "about": system.about,
        "base": system.of or name,
        "control": bool(system.of),
        "seeds": [round(float(one), 4) for one in top1["forwards"]],
        "top1": _mean(top1["forwards"]),
        "spread": round(statistics.stdev(top1["forwards"]), 4) if len(runs) > 1 else None,
        "mean_class": _mean(classes.values()),
        "opposite_top1": share_right(total, labels, list(opposites)),
        "reversed_top1": _mean(top1["reversed"]),
        "shuffled_top1": _mean(top1["shuffled"]),
        "train_top1": _mean(result["history"][-1]["train_top1"] for result in results),
        "opposites": opposites,
        "pairs": {pair: right for pair, right in by_pair.items() if right is not None},
        "per_class": classes,
    }


def share_right(confusion: NDArray[np.int64], labels: Sequence[str], some: Sequence[str]) -> float | None:
    """Return which share of the videos of some classes was classified right; None if there are no videos."""
    places = [labels.index(label) for label in some]
    videos = confusion[places].sum()
    return round(float(confusion[places, places].sum() / videos), 4) if videos else None


def _mean(values: Iterable[float]) -> float:
    return round(float(statistics.mean(values)), 4)

"""Accuracy of a checkpoint, in PyTorch, on the loader that validates during training."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from numpy.typing import NDArray

from flowless.bench.evaluation import Evaluation, EvaluationOptions
from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.pipeline.index import DatasetIndex
from flowless.train.checkpoints import Checkpoint, load_checkpoint
from flowless.train.data import Place, evaluation_loader, relabel


def evaluate_checkpoint(
    model: str | os.PathLike[str] | Checkpoint, index: DatasetIndex, *, options: EvaluationOptions | None = None
) -> Evaluation:
    """Score every video of an index with PyTorch, on the GPU where there is one; see `evaluate`."""
    options = options or EvaluationOptions()
    checkpoint = model if isinstance(model, Checkpoint) else load_checkpoint(model)
    index = relabel(index, checkpoint.labels, what="index")
    rule = options.views or checkpoint.spec.sampling
    gpu = torch.cuda.is_available()
    network = checkpoint.model.to("cuda" if gpu else "cpu", memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = evaluation_loader(
        index,
        checkpoint.spec,
        rule=rule,
        batch_size=options.batch_size,
        threads=options.threads,
        place=Place(gpu=0 if gpu else None),
    )
    scores: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    ids: list[str] = []
    start = time.perf_counter()
    with progress() as bar, torch.inference_mode():
        task = bar.add_task("evaluating", total=len(index.videos))
        for batch in loader:
            views = batch.clips.shape[1]
            scores.append(network(batch.clips.flatten(0, 1)).unflatten(0, (-1, views)).mean(1).float().cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
            ids.extend(batch.ids)
            bar.advance(task, len(batch.ids))
    if not ids:
        raise FlowlessError(f"not one of {len(index.videos)} videos could be read.")
    return Evaluation(
        model=checkpoint.name,
        target="pytorch",
        views=rule,
        scores=np.concatenate(scores),
        labels=np.concatenate(labels),
        names=checkpoint.labels,
        ids=tuple(ids),
        seconds=time.perf_counter() - start,
        bad_videos=list(loader.bad_videos),
    )

"""Accuracy of a checkpoint, in PyTorch, on the loader that validates during training."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from numpy.typing import NDArray

from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.clip.view_scores import average_views
from flowless.pipeline.dataset.index import DatasetIndex, Refused
from flowless.train.checkpoints import Checkpoint, load_checkpoint
from flowless.train.evaluation.evaluate import score_videos
from flowless.train.evaluation.evaluation import Evaluation, EvaluationOptions
from flowless.train.loop.data import Place, evaluation_loader, relabel, warn_of_short_videos
from flowless.train.models.backbones.backbone import pixels_together

#: Most views of a video that come by the loader where there is no GPU. It makes them all at once, from frames of full size: thirty
#: of a 640 x 480 video took 1.3 GB and 3.5 s, cut one after another 0.2 GB and 1.4 s (2 cores).
_LOADER_VIEWS = 2


def evaluate_checkpoint(
    model: str | os.PathLike[str] | Checkpoint, index: DatasetIndex, *, options: EvaluationOptions | None = None
) -> Evaluation:
    """Score every video of an index with PyTorch, on the GPU where there is one; see `evaluate`."""
    options = options or EvaluationOptions()
    checkpoint = model if isinstance(model, Checkpoint) else load_checkpoint(model)
    index = relabel(index, checkpoint.labels)
    name, spec = options.cut(checkpoint.spec, recipe=checkpoint.recipe)
    warn_of_short_videos(index, spec, rule=spec.sampling)
    gpu = torch.cuda.is_available()
    network = pixels_together(checkpoint.model.to("cuda" if gpu else "cpu"))
    start = time.perf_counter()
    with torch.inference_mode():
        if gpu or spec.views <= _LOADER_VIEWS:
            scores, labels, ids, bad = _by_loader(network, index, spec, options, place=Place(gpu=0 if gpu else None))
        else:
            scores, kept, bad = score_videos(lambda clips: network(torch.from_numpy(clips)).numpy(), index, spec, options=options)
            labels, ids = np.array([record.label for record in kept], np.int64), [record.id for record in kept]
    return Evaluation(
        model=checkpoint.name,
        target="pytorch",
        views=name,
        spec=spec,
        scores=scores,
        labels=labels,
        names=checkpoint.labels,
        ids=tuple(ids),
        seconds=time.perf_counter() - start,
        bad_videos=bad,
    )


def _by_loader(
    network: torch.nn.Module, index: DatasetIndex, spec: ClipSpec, options: EvaluationOptions, *, place: Place
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str], list[Refused]]:
    """Return scores, labels and ids of the videos that could be read, and those that could not."""
    loader = evaluation_loader(
        index,
        spec,
        rule=spec.sampling,
        batch_size=max(1, options.batch_size // spec.views),
        threads=options.threads,
        place=place,
    )
    scores: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    ids: list[str] = []
    with progress() as bar:
        task = bar.add_task("evaluating", total=len(index.videos))
        for batch in loader:
            # A video may have more views than run together.
            rows = torch.cat([network(part).float() for part in batch.clips.flatten(0, 1).split(options.batch_size)])
            scores.append(average_views(rows.unflatten(0, (-1, spec.views)).cpu().numpy(), spec.average))
            labels.append(batch.labels.cpu().numpy())
            ids.extend(batch.ids)
            bar.advance(task, len(batch.ids))
    if not ids:
        raise FlowlessError(f"not one of {len(index.videos)} videos could be read.")
    return np.concatenate(scores), np.concatenate(labels), ids, list(loader.bad_videos)

"""Measure the accuracy of a checkpoint in PyTorch."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from numpy.typing import NDArray

from flowless.console import progress
from flowless.engines.decoded_scores import why_not_gpu
from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.clip.view_scores import average_views
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.checkpoints import Checkpoint, load_checkpoint
from flowless.train.evaluation.options import EvaluationOptions
from flowless.train.evaluation.result import Evaluation, VideoScores
from flowless.train.evaluation.score_videos import score_videos
from flowless.train.loop.index_checks import relabel, warn_of_short_videos
from flowless.train.loop.loaders import LoaderPlacement, evaluation_loader
from flowless.train.models.backbones.timm_backbones import to_channels_last

#: On a CPU the loader is used up to this many views of a video, and `score_videos` beyond. The loader makes all views at once, from
#: frames of full size: for thirty views of a 640 x 480 video it took 1.3 GB and 3.5 s, cutting them one after another 0.2 GB and 1.4 s
#: (2 cores).
_LOADER_VIEWS = 2


def evaluate_checkpoint(
    model: str | os.PathLike[str] | Checkpoint, index: DatasetIndex, *, options: EvaluationOptions | None = None
) -> Evaluation:
    """Score every video of an index with PyTorch, on the GPU where there is one; see `evaluate`."""
    options = options or EvaluationOptions()
    checkpoint = model if isinstance(model, Checkpoint) else load_checkpoint(model)
    index = relabel(index, checkpoint.labels)
    name, spec = options.protocol(checkpoint.spec, recipe=checkpoint.recipe)
    warn_of_short_videos(index, spec, rule=spec.sampling)
    gpu = torch.cuda.is_available()
    if options.decode == "gpu" and (reason := why_not_gpu()):
        raise FlowlessError(f"decode is 'gpu', but {reason}. With 'auto' or 'cpu', PyAV decodes.")
    network = to_channels_last(checkpoint.model.to("cuda" if gpu else "cpu"))
    start = time.perf_counter()
    with torch.inference_mode():
        if gpu or spec.views <= _LOADER_VIEWS:
            scored = _score_with_loader(network, index, spec, options, placement=LoaderPlacement(gpu=0 if gpu else None))
        else:
            scored = score_videos(lambda clips: network(torch.from_numpy(clips)).numpy(), index, spec, options=options)
    return Evaluation(
        **vars(scored),
        model=checkpoint.name,
        target="pytorch",
        views=name,
        spec=spec,
        names=checkpoint.labels,
        seconds=time.perf_counter() - start,
    )


def _score_with_loader(
    network: torch.nn.Module, index: DatasetIndex, spec: ClipSpec, options: EvaluationOptions, *, placement: LoaderPlacement
) -> VideoScores:
    """Score every video of an index, read by the loader that validates during training."""
    loader = evaluation_loader(
        index,
        spec,
        rule=spec.sampling,
        batch_size=max(1, options.batch_size // spec.views),
        threads=options.threads,
        placement=placement,
        decoder="pyav" if options.decode == "cpu" else "auto",
    )
    scores: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    ids: list[str] = []
    with progress() as bar:
        task = bar.add_task("evaluating", total=len(index.videos))
        for batch in loader:
            # One video may have more views than batch_size.
            rows = torch.cat([network(part).float() for part in batch.clips.flatten(0, 1).split(options.batch_size)])
            scores.append(average_views(rows.unflatten(0, (-1, spec.views)).cpu().numpy(), spec.average))
            labels.append(batch.labels.cpu().numpy())
            ids.extend(batch.ids)
            bar.advance(task, len(batch.ids))
    if not ids:
        raise FlowlessError(f"none of the {len(index.videos)} videos could be read; the first: {loader.bad_videos[0].reason}")
    return VideoScores(
        scores=np.concatenate(scores),
        labels=np.concatenate(labels),
        ids=tuple(ids),
        bad_videos=list(loader.bad_videos),
        decoded_by={str(decoder): count for decoder, count in loader.decoded_by.items()},
    )

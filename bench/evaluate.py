"""Accuracy of a checkpoint or of an engine bundle on an index. A bundle needs no PyTorch here."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import flowless
from flowless.bench.evaluation import Evaluation, EvaluationOptions
from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.index import DatasetIndex, Refused, VideoRecord
from flowless.pipeline.preprocess import load_clip
from flowless.pipeline.spec import ClipSpec
from flowless.train.data import relabel

if TYPE_CHECKING:
    from flowless.engines import Engine
    from flowless.train.checkpoints import Checkpoint


def evaluate(
    model: str | os.PathLike[str] | Checkpoint | Engine, index: DatasetIndex, *, options: EvaluationOptions | None = None
) -> Evaluation:
    """Score every video of an index once.

    Args:
        model: A checkpoint file, a bundle folder, or either of them loaded.
        index: Labelled videos; their labels, by name, must be among the model's.
        options: How to run.

    Raises:
        FlowlessError: The model or the index cannot be used, or no video can be read.
    """
    options = options or EvaluationOptions()
    if options.batch_size < 1:
        raise FlowlessError(f"batch_size is {options.batch_size}; it must be at least 1.")
    if isinstance(model, str | os.PathLike):
        if not Path(model).exists():
            raise FlowlessError(f"{model}: no such checkpoint (a .safetensors file) or bundle (a folder).")
        if Path(model).is_dir():
            model = flowless.load(Path(model), target=options.target, precision=options.precision)
    if isinstance(model, str | os.PathLike) or not callable(model):
        from flowless.bench.evaluate_checkpoint import evaluate_checkpoint

        return evaluate_checkpoint(model, index, options=options)
    return _evaluate_engine(model, index, options)


def _evaluate_engine(engine: Engine, index: DatasetIndex, options: EvaluationOptions) -> Evaluation:
    index = relabel(index, engine.labels, what="index")
    spec = replace(engine.spec, sampling=options.views or engine.spec.sampling)
    scores: list[NDArray[np.float32]] = []
    kept: list[VideoRecord] = []
    bad: list[Refused] = []
    start = time.perf_counter()
    waiting: list[tuple[VideoRecord, NDArray[np.uint8]]] = []

    def run() -> None:
        if waiting:
            clips = np.concatenate([clip for _, clip in waiting])
            scores.append(engine(clips).reshape(len(waiting), -1, len(engine.labels)).mean(1))
            kept.extend(record for record, _ in waiting)
            waiting.clear()

    with progress() as bar:
        task = bar.add_task("evaluating", total=len(index.videos))
        for record, clip in _clips(index, spec, options.threads or usable_cores()):
            if isinstance(clip, FlowlessError):
                bad.append(Refused(path=record.path, reason=str(clip)))
            else:
                waiting.append((record, clip))
            if sum(len(clip) for _, clip in waiting) >= options.batch_size:
                run()
            bar.advance(task)
        run()
    if not kept:
        raise FlowlessError(f"not one of {len(index.videos)} videos could be read; the first: {bad[0].reason}")
    return Evaluation(
        model=engine.model,
        target=f"{engine.target} {engine.precision}",
        views=spec.sampling,
        scores=np.concatenate(scores),
        labels=np.array([record.label for record in kept], np.int64),
        names=engine.labels,
        ids=tuple(record.id for record in kept),
        seconds=time.perf_counter() - start,
        bad_videos=bad,
    )


def _clips(index: DatasetIndex, spec: ClipSpec, threads: int) -> Iterator[tuple[VideoRecord, NDArray[np.uint8] | FlowlessError]]:
    """Yield each video's clip, or why there is none, in order; a few videos ahead are decoded meanwhile."""

    def read(record: VideoRecord) -> NDArray[np.uint8] | FlowlessError:
        try:
            return load_clip(index.path_of(record), spec, first_frame=record.first_frame, num_frames=record.frames)
        except FlowlessError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[VideoRecord, Future[NDArray[np.uint8] | FlowlessError]]] = deque()
        for record in index.videos:
            ahead.append((record, pool.submit(read, record)))
            if len(ahead) > 2 * threads:
                first, future = ahead.popleft()
                yield first, future.result()
        for record, future in ahead:
            yield record, future.result()

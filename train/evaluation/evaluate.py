"""Accuracy of a checkpoint or of an engine bundle on an index. A bundle needs no PyTorch here."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import flowless
from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.clip.preprocess import ClipViews, load_views
from flowless.pipeline.clip.protocols import SAME_SIZE
from flowless.pipeline.clip.spec import Average, ClipSpec
from flowless.pipeline.clip.view_scores import ViewAverage
from flowless.pipeline.dataset.index import DatasetIndex, Refused, VideoRecord
from flowless.train.evaluation.evaluation import Evaluation, EvaluationOptions
from flowless.train.loop.data import relabel, warn_of_short_videos

if TYPE_CHECKING:
    from flowless.engines import Engine
    from flowless.train.checkpoints import Checkpoint


def evaluate(
    model: str | os.PathLike[str] | Checkpoint | Engine,
    index: str | os.PathLike[str] | DatasetIndex,
    *,
    options: EvaluationOptions | None = None,
) -> Evaluation:
    """Score every video of an index once.

    Args:
        model: A checkpoint file, a bundle folder, or either of them loaded.
        index: Labelled videos, or the file of their index; their labels, by name, must be among the model's.
        options: How to run.

    Raises:
        FlowlessError: The model or the index cannot be used, or no video can be read.
    """
    options = options or EvaluationOptions()
    index = index if isinstance(index, DatasetIndex) else DatasetIndex.load(index)
    if options.batch_size < 1:
        raise FlowlessError(f"batch_size is {options.batch_size}; it must be at least 1.")
    if isinstance(model, str | os.PathLike):
        if not Path(model).exists():
            raise FlowlessError(f"{model}: no such checkpoint (a .safetensors file) or bundle (a folder).")
        if Path(model).is_dir():
            model = flowless.load(Path(model), target=options.target, precision=options.precision)
    if isinstance(model, str | os.PathLike) or not callable(model):
        from flowless.train.evaluation.evaluate_checkpoint import evaluate_checkpoint

        return evaluate_checkpoint(model, index, options=options)
    return _evaluate_engine(model, index, options)


def _evaluate_engine(engine: Engine, index: DatasetIndex, options: EvaluationOptions) -> Evaluation:
    index = relabel(index, engine.labels)
    name, spec = options.cut(engine.spec)
    warn_of_short_videos(index, spec, rule=spec.sampling)
    _check_size(engine, name, spec)
    start = time.perf_counter()
    scores, kept, bad = score_videos(engine, index, spec, options=options)
    return Evaluation(
        model=engine.model,
        target=f"{engine.target} {engine.precision}",
        views=name,
        spec=spec,
        scores=scores,
        labels=np.array([record.label for record in kept], np.int64),
        names=engine.labels,
        ids=tuple(record.id for record in kept),
        seconds=time.perf_counter() - start,
        bad_videos=bad,
    )


def score_videos(
    score: Callable[[NDArray[np.uint8]], NDArray[np.float32]], index: DatasetIndex, spec: ClipSpec, *, options: EvaluationOptions
) -> tuple[NDArray[np.float32], list[VideoRecord], list[Refused]]:
    """Score every video of an index once, each the average over its views.

    Args:
        score: From uint8 `[B, N, m, H, W, 3]` to float32 `[B, classes]`; an engine, for one.
        index: The videos.
        spec: How to cut their views.
        options: Says how many views run together, at most, and how many threads decode.

    Returns:
        Scores float32 `[videos, classes]`, the videos that they belong to, and those that could not be read.

    Raises:
        FlowlessError: No video can be read.
    """
    averages = ViewAverages(score, average=spec.average, batch_size=options.batch_size)
    kept: list[VideoRecord] = []
    bad: list[Refused] = []
    with progress() as bar:
        task = bar.add_task("evaluating", total=len(index.videos))
        for record, views in read_views(index, spec, options.threads or usable_cores()):
            if isinstance(views, FlowlessError):
                bad.append(Refused(path=record.path, reason=str(views)))
            else:
                averages.add(views)
                kept.append(record)
            bar.advance(task)
    if not kept:
        raise FlowlessError(f"not one of {len(index.videos)} videos could be read; the first: {bad[0].reason}")
    return averages.scores(), kept, bad


class ViewAverages:
    """The scores of videos, each the average over its views.

    Views run in batches that are full, whatever videos they belong to, and are cut when their batch is: so memory holds one
    batch, however many views a video has.
    """

    def __init__(self, score: Callable[[NDArray[np.uint8]], NDArray[np.float32]], *, average: Average, batch_size: int) -> None:
        """Say what scores.

        Args:
            score: From uint8 `[B, N, m, H, W, 3]` to float32 `[B, classes]`; an engine, for one.
            average: What is averaged.
            batch_size: Views that run together, at most.
        """
        self._score, self._room, self._most = score, batch_size, batch_size
        self._average: Average = average
        self._waiting: list[tuple[ViewAverage, NDArray[np.uint8]]] = []
        self._videos: list[ViewAverage] = []

    def add(self, views: ClipViews) -> None:
        """Add a video."""
        video, done = ViewAverage(self._average), 0
        self._videos.append(video)
        while done < len(views):
            part = views.cut(done, done + self._room)
            self._waiting.append((video, part))
            self._room -= len(part)
            done += len(part)
            if self._room == 0:
                self._run()

    def scores(self) -> NDArray[np.float32]:
        """Return float32 `[videos, classes]` of the videos added, in their order."""
        if self._waiting:
            self._run()
        return np.stack([video.scores for video in self._videos])

    def _run(self) -> None:
        parts = [part for _, part in self._waiting]
        rows = self._score(parts[0] if len(parts) == 1 else np.concatenate(parts))
        for video, part in self._waiting:
            own, rows = rows[: len(part)], rows[len(part) :]
            video.add(own)
        self._waiting, self._room = [], self._most


def _check_size(engine: Engine, name: str, spec: ClipSpec) -> None:
    """Refuse a protocol that needs frames of a size that the bundle's graph does not take."""
    if spec.shape == engine.spec.shape:
        return
    raise FlowlessError(
        f"views is {name!r}, which takes frames of {spec.height} x {spec.width}; the graph of {engine.manifest.folder} has a fixed "
        f"size, {engine.spec.height} x {engine.spec.width}. Export one of the other size: flowless export CHECKPOINT --out BUNDLE "
        f"--views {name}; or evaluate the checkpoint; or choose views of this size: {', '.join(SAME_SIZE)}."
    )


def read_views(index: DatasetIndex, spec: ClipSpec, threads: int) -> Iterator[tuple[VideoRecord, ClipViews | FlowlessError]]:
    """Yield each video's views, or why there are none, in order; a few videos ahead are decoded meanwhile."""
    # A video of many views has many frames, so fewer such videos wait.
    most = threads + max(1, threads // spec.views)

    def read(record: VideoRecord) -> ClipViews | FlowlessError:
        try:
            with index.open(record) as video:
                return load_views(video, spec, first_frame=record.first_frame, num_frames=record.frames)
        except FlowlessError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[VideoRecord, Future[ClipViews | FlowlessError]]] = deque()
        for record in index.videos:
            ahead.append((record, pool.submit(read, record)))
            if len(ahead) > most:
                first, future = ahead.popleft()
                yield first, future.result()
        for record, future in ahead:
            yield record, future.result()

"""Score the videos of an index with any function from clips to scores, such as an engine. No PyTorch is imported here."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowless.console import progress
from flowless.engines.decoded_scores import score_decoded
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.clip.preprocess import ClipViews, load_views
from flowless.pipeline.clip.spec import Average, ClipSpec
from flowless.pipeline.clip.view_scores import ViewAverage
from flowless.pipeline.dataset.index import DatasetIndex, Refused, VideoRecord
from flowless.pipeline.video.open_reader import VideoPart
from flowless.train.evaluation.options import EvaluationOptions
from flowless.train.evaluation.result import VideoScores

if TYPE_CHECKING:
    from flowless.engines.engine import Engine

#: From uint8 clips `[B, N, m, H, W, 3]` to float32 scores `[B, classes]`; an engine is one.
ScoreFunction = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def score_videos(score: ScoreFunction, index: DatasetIndex, spec: ClipSpec, *, options: EvaluationOptions) -> VideoScores:
    """Score every video of an index once; a video's score is the average over its views.

    Args:
        score: The model.
        index: The videos.
        spec: How to cut their views.
        options: `batch_size`: the most views that run together; `threads`: how many threads decode.

    Raises:
        FlowlessError: No video can be read.
    """
    averages = ViewAverages(score, average=spec.average, batch_size=options.batch_size)
    records: list[VideoRecord] = []
    bad: list[Refused] = []
    with progress() as bar:
        task = bar.add_task("evaluating", total=len(index.videos))
        for record, views in read_views(index, spec, options.threads or usable_cores()):
            if isinstance(views, FlowlessError):
                bad.append(Refused(path=record.path, reason=str(views)))
            else:
                averages.add(views)
                records.append(record)
            bar.advance(task)
    if not records:
        raise FlowlessError(f"none of the {len(index.videos)} videos could be read; the first: {bad[0].reason}")
    return VideoScores(
        scores=averages.scores(),
        labels=np.array([record.label for record in records], np.int64),
        ids=tuple(record.id for record in records),
        bad_videos=bad,
        decoded_by={"pyav": len(records)},
    )


def score_decoded_videos(
    engine: Engine, index: DatasetIndex, spec: ClipSpec, *, options: EvaluationOptions, device_id: int | None = 0
) -> VideoScores:
    """Score every video of an index once with an engine, decoded by DALI and, where it cannot, by PyAV.

    Args:
        engine: The engine.
        index: The videos.
        spec: How to cut their views.
        options: As for `score_videos`.
        device_id: Number of the GPU that decodes; None: DALI's CPU device.

    Raises:
        FlowlessError: No video can be read, or DALI is not installed.
    """
    videos = file_parts(index)
    scored = score_decoded(engine, videos, spec, views_at_once=options.batch_size, threads=options.threads, device_id=device_id)
    records: list[VideoRecord] = []
    scores: list[NDArray[np.float32]] = []
    bad: list[Refused] = []
    decoders, fallbacks = Counter[str](), Counter[str]()
    with progress() as bar, closing(scored):
        task = bar.add_task("evaluating", total=len(index.videos))
        for record, video in zip(index.videos, scored, strict=True):
            bar.advance(task)
            if video.scores is None:
                bad.append(Refused(path=record.path, reason=str(video.decoded.error)))
                continue
            records.append(record)
            scores.append(video.scores)
            decoders[video.decoder] += 1
            fallbacks.update([video.decoded.fallback] if video.decoded.fallback else [])
    if not records:
        raise FlowlessError(f"none of the {len(index.videos)} videos could be read; the first: {bad[0].reason}")
    return VideoScores(
        scores=np.stack(scores),
        labels=np.array([record.label for record in records], np.int64),
        ids=tuple(record.id for record in records),
        bad_videos=bad,
        decoded_by=dict(decoders),
        fallbacks=dict(fallbacks.most_common()),
    )


def file_parts(index: DatasetIndex) -> Iterator[VideoPart]:
    """Yield each video of an index as `score_decoded` takes it, opened with the properties that the index stores."""
    for record in index.videos:
        path = str(index.path_of(record))
        yield VideoPart(path=path, open=partial(index.open, record), first_frame=record.first_frame, frames=record.frames)


class ViewAverages:
    """Scores videos view by view and averages the scores of each video's views.

    Batches are always full: one batch may hold views of several videos. Views are cut only when their batch is next, so memory holds
    one batch, however many views a video has.

    Args:
        score: The model.
        average: What is averaged, logits or softmax.
        batch_size: The most views that run together.
    """

    def __init__(self, score: ScoreFunction, *, average: Average, batch_size: int) -> None:
        self._score, self._free, self._batch_size = score, batch_size, batch_size
        self._average: Average = average
        self._waiting: list[tuple[ViewAverage, NDArray[np.uint8]]] = []
        self._videos: list[ViewAverage] = []

    def add(self, views: ClipViews) -> None:
        """Add a video."""
        video, done = ViewAverage(self._average), 0
        self._videos.append(video)
        while done < len(views):
            part = views.cut(done, done + self._free)
            self._waiting.append((video, part))
            self._free -= len(part)
            done += len(part)
            if self._free == 0:
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
        self._waiting, self._free = [], self._batch_size


def read_views(index: DatasetIndex, spec: ClipSpec, threads: int) -> Iterator[tuple[VideoRecord, ClipViews | FlowlessError]]:
    """Yield each video, in order, with its views or with the error that reading it gave; threads decode the next videos meanwhile."""
    # A video with many views has many frames in memory, so fewer such videos are decoded ahead.
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

"""Scores of windows: decoding in a thread, several windows in each call of the engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowless.engines.engine import Engine
from flowless.engines.timeline.windows import See, Window, window_views
from flowless.errors import FlowlessError
from flowless.pipeline.clip.view_scores import ViewAverage

if TYPE_CHECKING:
    from flowless.pipeline.clip.preprocess import ClipViews
    from flowless.pipeline.video.frame_folder import FrameFolder
    from flowless.pipeline.video.reader import VideoReader

#: Views in one call of the engine, as in `predict`.
_VIEWS_AT_ONCE = 8
#: Batches of windows that are decoded before the engine takes them.
_BATCHES_AHEAD = 2


def score_windows(
    engine: Engine,
    video: VideoReader | FrameFolder,
    windows: Sequence[Window],
    *,
    see: See | None = None,
) -> Generator[NDArray[np.float32], None, None]:
    """Yield each window's scores, float32 `[classes]`: those that `Engine.predict` would give for its part of the video alone.

    A thread decodes the next batches while the engine runs. Where a library's last digits depend on the size of a batch, so do those of
    the scores.

    Args:
        engine: The engine.
        video: An open video; nothing else may read it meanwhile.
        windows: The windows, in the order of their starts.
        see: As in `window_views`; called in the decoding thread.

    Raises:
        FlowlessError: A frame cannot be decoded; the scores of the windows before it have been yielded.
    """
    import flowless.pipeline.clip.preprocess  # noqa: F401 - not in the thread: a Ctrl-C within an import would leave its lock held

    stop = threading.Event()

    def note(ordinal: int, frame: NDArray[np.uint8]) -> None:
        if stop.is_set():
            raise _Stopped
        if see is not None:
            see(ordinal, frame)

    views = window_views(video, engine.spec, windows, see=note)
    with closing(_batches(views, max(1, _VIEWS_AT_ONCE // engine.spec.views))) as batches, ThreadPoolExecutor(1, "flowless-decode") as pool:
        waiting: deque[Future[list[ClipViews] | None]] = deque()
        try:
            waiting.extend(pool.submit(next, batches, None) for _ in range(_BATCHES_AHEAD))
            while (batch := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, batches, None))
                yield from _scores(engine, batch)
                del batch  # or its frames would be kept while the next is waited for
        finally:
            stop.set()
            for future in waiting:
                future.cancel()


class _Stopped(Exception):
    """The scores are not wanted any more."""


def _batches(views: Generator[ClipViews, None, None], size: int) -> Generator[list[ClipViews], None, None]:
    """Yield windows in lists of `size`; those before an error are yielded before it is raised."""
    batch, error = [], None
    with closing(views):
        try:
            for window in views:
                batch.append(window)
                if len(batch) == size:
                    yield batch
                    batch = []
        except FlowlessError as raised:
            error = raised
    if batch:
        yield batch
    if error is not None:
        raise error


def _scores(engine: Engine, batch: Sequence[ClipViews]) -> Iterator[NDArray[np.float32]]:
    """Yield each window's scores; a window of many views is scored alone, in the batches of `predict`."""
    if len(batch) == 1:
        average = ViewAverage(engine.spec.average)
        for clips in batch[0].parts(_VIEWS_AT_ONCE):
            average.add(engine(clips))
        yield average.scores
        return
    rows = engine(np.concatenate([window.cut() for window in batch]))
    for own in rows.reshape(len(batch), -1, rows.shape[-1]):
        yield ViewAverage(engine.spec.average).add(own).scores

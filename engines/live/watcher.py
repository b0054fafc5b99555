"""Watches many sources at once: all frames that are due go through the engine in one batch."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flowless.engines.engine import Engine, likeliest
from flowless.engines.live.addresses import parse_addresses
from flowless.engines.live.collection import CollectionWindow
from flowless.engines.live.options import WatchOptions
from flowless.engines.live.records import Answer, SourceChange, SourceStatus
from flowless.engines.live.source import Source
from flowless.engines.streaming.stream import VIEWS_AT_ONCE, score
from flowless.errors import FlowlessError

#: Longest time until a call of `close` in another thread or a signal handler is noticed, and for which `close` waits for threads.
_NOTICE_SECONDS, _CLOSE_SECONDS = 0.2, 0.8
#: Changes of state that are kept for who iterates slowly.
_CHANGES_KEPT = 1024


class Watcher:
    """Sources that are watched; iterate over it for their `Answer`s and `SourceChange`s.

    Every source has a thread that decodes all of its frames; the newest one that is due is scored, and those that a newer one replaced
    are counted as dropped. The engine runs in the thread that iterates. A source that is slow, lost or not there yet costs the others
    nothing. Iterating ends when all sources have ended or failed, and after `close`.

    Args:
        engine: Scores the sources.
        sources: Files, `rtsp://` and `http://` (HLS) addresses, `/dev/video0` or a camera's number; each also as `NAME=ADDRESS`.
        options: How they are watched.

    Attributes:
        window: Estimates of the engine's time and utilisation.
        on_batch: Called after each batch with the number of its sources and the engine's seconds; None: nothing is called.

    Raises:
        FlowlessError: A source is none of these, or the options do not fit the engine.
    """

    def __init__(self, engine: Engine, sources: Sequence[str | os.PathLike[str]], options: WatchOptions | None = None) -> None:
        self.engine, self.options = engine, options or WatchOptions()
        self.window = CollectionWindow()
        self.on_batch: Callable[[int, float], None] | None = None
        # Reentrant, since a signal handler may close the watcher in the thread that iterates.
        self._news = threading.Condition(threading.RLock())
        self._running = threading.RLock()  # held while the engine runs
        self._records: deque[Answer | SourceChange] = deque()
        self._changes: deque[SourceChange] = deque(maxlen=_CHANGES_KEPT)
        self._closed = False
        self._close_until = 0.0
        self._batches = 0
        self._sources = [
            Source(address, engine, self.options, news=self._news, report=self._changes.append) for address in parse_addresses(sources)
        ]
        for source in self._sources:
            source.thread.start()

    def __enter__(self) -> Self:
        """Return the watcher."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End all sources; returns within a second, from any thread or signal handler, also when called again.

        A thread that libav blocks ends by its own timeout. Iterating in another thread ends after the batch that the engine is scoring.
        """
        if not self._closed:
            self._close_until = time.monotonic() + _CLOSE_SECONDS
        self._closed = True
        for source in self._sources:
            source.stop()
        until = self._close_until  # of the first call
        if self._news.acquire(timeout=_NOTICE_SECONDS):
            self._news.notify_all()
            self._news.release()
        for source in self._sources:
            source.thread.join(max(0.0, until - time.monotonic()))
        if self._running.acquire(timeout=max(0.0, until - time.monotonic())):
            self._running.release()
        self._records.clear()
        self._changes.clear()
        for source in self._sources:
            source.picture = None

    @property
    def sources(self) -> tuple[SourceStatus, ...]:
        """All sources as they are now, in the order in which they were given."""
        with self._news:
            return tuple(source.status for source in self._sources)

    def picture(self, source: str) -> NDArray[np.uint8] | None:
        """Return a source's newest frame, uint8 `[H, W, 3]`; None before the first, and without the option `keep_pictures`.

        Raises:
            FlowlessError: There is no source of that name.
        """
        for item in self._sources:
            if item.address.name == source:
                return item.picture
        names = ", ".join(item.address.name for item in self._sources)
        raise FlowlessError(f"there is no source {source!r}; there are {names}.")

    def __iter__(self) -> Self:
        """Return the watcher."""
        return self

    def __next__(self) -> Answer | SourceChange:
        """Return the next record; wait until there is one.

        Raises:
            StopIteration: All sources have ended or failed, or the watcher was closed.
        """
        try:
            while not self._closed:
                if self._records:
                    return self._records.popleft()
                if not self._advance():
                    break
        except BaseException:  # also Ctrl-C
            self.close()
            raise
        self.close()
        raise StopIteration

    def _advance(self) -> bool:
        """Add records, or wait a little; return whether there may be more."""
        with self._news:
            batch = self._collect()
            self._records.extend(self._changes)
            self._changes.clear()
        if batch:
            self._score(batch)
        return bool(batch or self._records) or not all(source.over for source in self._sources)

    def _collect(self) -> list[Source]:
        """Wait for frames, and return the sources of the next batch; empty where none came, or a state changed before."""
        if not any(source.ready for source in self._sources):
            if not self._changes and not self._closed and not all(source.over for source in self._sources):
                self._news.wait(_NOTICE_SECONDS)
            if self._changes or not any(source.ready for source in self._sources):
                return []
        deadline = time.monotonic() + self.window.seconds
        while not self._closed:
            now = time.monotonic()
            untils = [until for source in self._sources if (until := source.expected_until(now, deadline)) is not None]
            if not untils or now >= deadline:
                break
            self._news.wait(min(deadline, *untils) - now)
        return self._fair([source for source in self._sources if source.ready])

    def _fair(self, ready: list[Source]) -> list[Source]:
        """Return those that waited longest for their turn: as many as pay, and at most as many as have the views of one batch."""
        if not ready:
            return []
        ready.sort(key=lambda source: (source.turn, source.answered))
        most = self.window.frames(min(len(ready), max(1, VIEWS_AT_ONCE // ready[0].stream.views)))
        self._batches += 1
        for source in ready[:most]:
            source.turn = self._batches
        return ready[:most]

    def _score(self, batch: list[Source]) -> None:
        with self._running:
            if self._closed:
                return
            started = time.monotonic()
            results = score(self.engine, [source.stream for source in batch])
            ended = time.monotonic()
        self.window.ran(len(batch), started, ended)
        if self.on_batch is not None:
            self.on_batch(len(batch), ended - started)
        with self._news:
            for source, result in zip(batch, results, strict=True):
                arrival = None if result is None else result.tag
                source.scored(arrival)
                if result is None or arrival is None:
                    continue
                self._records.append(
                    Answer(
                        source=source.address.name,
                        frame=arrival.frame,
                        pts_ns=arrival.pts_ns,
                        arrived=arrival.arrived,
                        latency=ended - arrival.at,
                        top=likeliest(result.scores, self.engine.labels, self.options.top),
                        scores=result.scores,
                        dropped=source.dropped(arrival.due),
                    )
                )
            self._news.notify_all()

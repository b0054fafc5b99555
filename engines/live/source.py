"""One source: a thread that decodes always, keeps the newest frame, and opens a lost stream again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowless.engines.engine import Engine
from flowless.engines.live.addresses import Address
from flowless.engines.live.options import WatchOptions
from flowless.engines.live.reading import Decoded, Lost, read_file, read_live
from flowless.engines.live.records import SourceChange, SourceState, SourceStatus
from flowless.engines.streaming.stream import Stream
from flowless.errors import FlowlessError, first_line
from flowless.pipeline.video.container import Unreadable

#: A source that is later than so many of its usual intervals is not waited for.
_LATE_INTERVALS = 2.0
#: Frames that are later than this beside their time stamps set the clock back: the source itself has paused.
_LATE_SECONDS = 1.0
#: A playlist's time stamps that are further ahead have begun anew.
_EARLY_SECONDS = 30.0
#: Longest time until a stop is noticed.
_NOTICE_SECONDS = 0.1
#: Weight of the newest interval in the running estimate.
_NEWEST = 0.2


@dataclass(frozen=True)
class Arrival:
    """A frame that was put into the stream."""

    frame: int
    """Its ordinal among the decoded."""
    pts_ns: int
    arrived: float
    """Seconds since 1970."""
    at: float
    """The same moment on the monotonic clock."""
    due: int
    """Number of frames until this one, with it, that are to be scored."""


class Source:
    """A source and its thread.

    Args:
        address: Where its frames come from.
        engine: Scores its stream.
        options: How it is watched.
        news: Guards the counters; notified when a frame is due or the state changes.
        report: Takes the changes of its state; called with `news` held.
    """

    def __init__(
        self,
        address: Address,
        engine: Engine,
        options: WatchOptions,
        *,
        news: threading.Condition,
        report: Callable[[SourceChange], None],
    ) -> None:
        self.address, self._options, self._news, self._report = address, options, news, report
        self.stream = Stream(engine, options.stream(live=address.live))
        self.picture: NDArray[np.uint8] | None = None
        self.answered = 0
        self.turn = 0  # number of the last batch that it was in
        self._stop = threading.Event()
        self._state: SourceState = "connecting"
        self._reason = ""
        self._frames = self._reconnects = self._width = self._height = 0
        self._due = self._scored_due = 0
        self._last_at = self._last_due = self._interval = 0.0
        self._base_ns = self._pts_ns = 0
        self._stride_ns, self._next_due_ns = round(options.stride * 1e9), 0
        # A daemon: one that is blocked inside libav ends by its own timeout, and keeps no program from ending.
        self.thread = threading.Thread(target=self._run, name=f"flowless-source-{address.name}", daemon=True)

    def stop(self) -> None:
        """End the thread; a call of libav in progress ends by its own timeout."""
        self._stop.set()

    @property
    def over(self) -> bool:
        """Whether no frame will come any more."""
        return self._state in {"ended", "failed"}

    @property
    def ready(self) -> bool:
        """Whether a frame is due that was not scored."""
        return self._due > self._scored_due

    def expected_until(self, now: float, deadline: float) -> float | None:
        """Return until when a batch may wait for this source: None where it is ready, over, late, or not due before `deadline`."""
        if self.ready or self._state != "running" or not self._interval:
            return None
        late = self._last_due + _LATE_INTERVALS * self._interval
        return late if now < late and self._last_due + self._interval <= deadline else None

    def scored(self, arrival: Arrival | None) -> None:
        """Note that a batch has scored this frame, or found none; with `news` held."""
        if arrival is not None:
            self.answered += 1
        self._scored_due = self._due if arrival is None else arrival.due

    def dropped(self, until: int | None = None) -> int:
        """Return how many due frames, until that one, were not scored because a newer one or a reset came first."""
        until = self._due - self.ready if until is None else until
        return until - self.answered

    @property
    def status(self) -> SourceStatus:
        """The source as it is now; with `news` held."""
        return SourceStatus(
            name=self.address.name,
            address=self.address.shown,
            state=self._state,
            frames=self._frames,
            dropped=self.dropped(),
            answered=self.answered,
            reconnects=self._reconnects,
            width=self._width,
            height=self._height,
            reason=self._reason,
        )

    def _run(self) -> None:
        try:
            self._watch()
        except FlowlessError as error:
            self._change("failed", error.reason if isinstance(error, Unreadable) else first_line(error))
        except Exception as error:  # the other sources go on, and this one's state says what happened
            self._change("failed", first_line(error))

    def _watch(self) -> None:
        failures = 0
        while not self._stop.is_set():
            self._change("connecting")
            before = self._frames
            try:
                self._read()
            except Lost as lost:
                failures = 1 if self._frames > before else failures + 1
                if self._options.retries is not None and failures > self._options.retries:
                    self._change("failed", str(lost))
                    return
                wait = min(self._options.retry_seconds * 2 ** min(failures - 1, 30), self._options.retry_most_seconds)
                self._reset()
                self._change("waiting", str(lost), retry_in=wait)
                self._stop.wait(wait)
            else:
                self._wait_for_scores()
                self._change("ended")
                return

    def _read(self) -> None:
        """Take frames until the source ends, is lost, or is stopped."""
        address, options = self.address, self._options
        frames = read_live(address, options) if address.live else read_file(address)
        paced = self._paced if address.kind == "http" or (not address.live and options.pace == "own") else iter
        with closing(frames):
            for decoded in paced(frames):
                if self._stop.is_set():
                    return
                if self._state != "running":
                    if self._frames:
                        self._reconnects += 1
                        # Time stamps, which begin anew, go on by the clock.
                        self._base_ns = self._pts_ns + round((time.monotonic() - self._last_at) * 1e9)
                    self._change("running")
                if self._frames % options.every == 0:
                    self._take(decoded)
                with self._news:
                    self._frames += 1

    def _paced(self, frames: Iterator[Decoded]) -> Iterator[Decoded]:
        """Yield frames when their time stamps say; a playlist's segments arrive many frames at a time."""
        start: float | None = None
        for decoded in frames:
            now = time.monotonic()
            due = now if start is None else start + decoded.pts_ns / 1e9
            if start is None or due < now - _LATE_SECONDS or (self.address.live and due > now + _EARLY_SECONDS):
                start, due = now - decoded.pts_ns / 1e9, now
            self._stop.wait(max(0.0, due - now))
            yield decoded

    def _take(self, decoded: Decoded) -> None:
        """Put a frame into the stream; at pace max, wait for its scores."""
        arrived, at = time.time(), time.monotonic()
        rgb = decoded.rgb()
        pts_ns = self._base_ns + decoded.pts_ns
        if not self.stream.options.max_gap_ns:
            pts_ns = max(pts_ns, self._pts_ns)
        self._pts_ns, self._last_at = pts_ns, at
        is_due = self._is_due(pts_ns)
        arrival = Arrival(self._frames, pts_ns, arrived, at, self._due + is_due)
        self.stream.put(self.stream.prepare(rgb), pts_ns, arrival)
        with self._news:
            self._height, self._width = rgb.shape[:2]
            self.picture = rgb if self._options.keep_pictures else None
            if not is_due:
                return
            self._due += 1
            if self._last_due:
                late = at - self._last_due
                self._interval = late if not self._interval else (1 - _NEWEST) * self._interval + _NEWEST * late
            self._last_due = at
            self._news.notify_all()
        if self._options.pace == "max" and not self.address.live:
            self._wait_for_scores()

    def _wait_for_scores(self) -> None:
        """Wait until the last due frame was scored."""
        with self._news:
            while self.ready and not self._stop.is_set():
                self._news.wait(_NOTICE_SECONDS)

    def _is_due(self, pts_ns: int) -> bool:
        """Return whether a frame is to be scored: the first at or after each multiple of the stride."""
        if not self._stride_ns:
            return True
        if self._next_due_ns - self._stride_ns <= pts_ns < self._next_due_ns:
            return False
        self._next_due_ns = (pts_ns // self._stride_ns + 1) * self._stride_ns
        return True

    def _reset(self) -> None:
        """Forget the frames before a reconnect."""
        self.stream.reset()
        with self._news:
            self._scored_due = self._due
            self._last_due = self._interval = 0.0

    def _change(self, state: SourceState, reason: str = "", *, retry_in: float | None = None) -> None:
        with self._news:
            if self._stop.is_set():
                return
            self._state, self._reason = state, reason
            self._report(SourceChange(source=self.address.name, state=state, reason=reason, retry_in=retry_in, reconnects=self._reconnects))
            self._news.notify_all()

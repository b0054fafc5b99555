"""What is shown of every source: its state, newest label, rates, latencies and recent labels."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from flowless.engines.live.events import Event
from flowless.engines.live.records import Answer, SourceChange, SourceState

#: Seconds over which rates and latencies are computed.
RATE_SECONDS = 10.0
#: Seconds of recent labels.
STRIP_SECONDS = 60.0
#: Scored frames and label runs kept of a source at most, so that a fast source stays small.
_MOST_FRAMES, _MOST_RUNS = 4000, 240


@dataclass(frozen=True, kw_only=True)
class LabelRun:
    """Consecutive scored frames of a source with the same most likely label."""

    label: str
    """The label."""
    begin: float
    """When its first frame was decoded, seconds since 1970."""
    end: float
    """When its last frame was decoded, seconds since 1970."""
    score: float
    """Its highest probability."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One source at one moment."""

    name: str
    """Name of the source."""
    state: SourceState
    """Its state."""
    reason: str
    """Why it is in this state, in one line; empty where nothing went wrong."""
    fps: float
    """Frames a second, of the last seconds."""
    scored: float
    """Frames a second that were scored, of the last seconds."""
    dropped: int
    """Frames so far that were not scored, because a newer one came first."""
    reconnects: int
    """How often it has been opened again."""
    p50: float | None
    """Median latency of the last seconds, in seconds; None without a scored frame in them."""
    p99: float | None
    """99th percentile of the latency of the last seconds, in seconds."""
    label: str
    """Most likely label at the newest scored frame; empty before the first."""
    score: float
    """Its probability."""
    pts_ns: int
    """Time stamp of that frame in nanoseconds."""
    arrived: float
    """When that frame was decoded, seconds since 1970; 0 before the first."""
    actions: tuple[str, ...]
    """Labels of the events that go on."""
    runs: tuple[LabelRun, ...]
    """Recent labels, the oldest first."""


@dataclass
class _Source:
    state: SourceState = "connecting"
    reason: str = ""
    reconnects: int = 0
    newest: Answer | None = None
    recent: deque[tuple[float, int, float]] = field(default_factory=lambda: deque(maxlen=_MOST_FRAMES))
    """Arrival, frame and latency of the scored frames of the last seconds."""
    runs: deque[LabelRun] = field(default_factory=lambda: deque(maxlen=_MOST_RUNS))
    actions: dict[int, str] = field(default_factory=dict)


class Board:
    """Collects what is shown of every source. `see` is called by one thread, `rows` and `row` by any.

    Args:
        names: Names of the sources, in the order in which they are shown.
        clock: Returns the time, seconds since 1970.
    """

    def __init__(self, names: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self.names = tuple(names)
        self._sources = {name: _Source() for name in names}
        self._clock = clock
        self._lock = threading.Lock()

    def see(self, item: Answer | SourceChange, events: Sequence[Event] = ()) -> None:
        """Take the next item of a watcher and the events that began or ended with it."""
        with self._lock:
            source = self._sources[item.source]
            if isinstance(item, SourceChange):
                source.state, source.reason, source.reconnects = item.state, item.reason, item.reconnects
                if item.state == "running":
                    source.recent.clear()  # the time without frames is in no rate
            else:
                source.newest = item
                source.recent.append((item.arrived, item.frame, item.latency))
                _extend(source.runs, item)
            for event in events:
                if event.state == "began":
                    source.actions[event.index] = event.label
                else:
                    source.actions.pop(event.index, None)

    def now(self) -> float:
        """Return the time by the board's clock, seconds since 1970."""
        return self._clock()

    def rows(self) -> tuple[Row, ...]:
        """Return all sources, as they are now."""
        return tuple(self.row(name) for name in self.names)

    def row(self, name: str) -> Row:
        """Return one source, as it is now."""
        with self._lock:
            source, now = self._sources[name], self._clock()
            while source.recent and source.recent[0][0] < now - RATE_SECONDS:
                source.recent.popleft()
            while source.runs and source.runs[0].end < now - STRIP_SECONDS:
                source.runs.popleft()
            fps, scored = _rates(source.recent)
            latencies = [latency for _, _, latency in source.recent]
            p50, p99 = np.percentile(latencies, (50, 99)).tolist() if latencies else (None, None)
            newest = source.newest
            best = newest.top[0] if newest and newest.top else None
            return Row(
                name=name,
                state=source.state,
                reason=source.reason,
                fps=fps,
                scored=scored,
                dropped=newest.dropped if newest else 0,
                reconnects=source.reconnects,
                p50=p50,
                p99=p99,
                label=best.label if best else "",
                score=best.score if best else 0.0,
                pts_ns=newest.pts_ns if newest else 0,
                arrived=newest.arrived if newest else 0.0,
                actions=tuple(source.actions.values()),
                runs=tuple(source.runs),
            )


def _extend(runs: deque[LabelRun], answer: Answer) -> None:
    if not answer.top:
        return
    best, begin, score = answer.top[0], answer.arrived, answer.top[0].score
    if runs and runs[-1].label == best.label:
        last = runs.pop()
        begin, score = last.begin, max(score, last.score)
    runs.append(LabelRun(label=best.label, begin=begin, end=answer.arrived, score=score))


def _rates(recent: Sequence[tuple[float, int, float]]) -> tuple[float, float]:
    """Return the frames a second that came, and those that were scored."""
    if len(recent) < 2 or (seconds := recent[-1][0] - recent[0][0]) <= 0:
        return 0.0, 0.0
    return (recent[-1][1] - recent[0][1]) / seconds, (len(recent) - 1) / seconds

"""Events: from the scores at single frames to actions with a begin and an end.

An action begins when its probability has stayed at or above one threshold for a while, and ends when it has stayed below a lower one
(hysteresis), so that a probability that flickers around one threshold gives one event. Probabilities are smoothed by an exponential
average over time before.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowless.engines.engine import softmax
from flowless.engines.live.records import Answer, SourceChange
from flowless.errors import FlowlessError


@dataclass(frozen=True, kw_only=True)
class EventOptions:
    """When an action begins and ends.

    Raises:
        FlowlessError: A threshold or a time is out of range, or `end_below` is above `begin_above`.
    """

    begin_above: float = 0.6
    """An action begins where its smoothed probability is at least this for a while; above 0, up to 1."""
    begin_after: float = 0.3
    """Seconds for which it must be so high."""
    end_below: float = 0.4
    """An action ends where its smoothed probability is less than this for a while; above 0, up to that at which it begins."""
    end_after: float = 0.3
    """Seconds for which it must be so low."""
    smooth: float = 0.3
    """Time constant of the exponential average of probabilities, in seconds; 0: none."""
    end_gap: float = 2.0
    """Seconds without a scored frame after which the actions of a source have ended at its last one."""
    background: tuple[str, ...] = ()
    """Labels that are never an event, such as `no gesture`."""

    def __post_init__(self) -> None:
        for name in ("begin_above", "end_below"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise FlowlessError(f"{name} is {value}; it must be a probability above 0 and up to 1, such as 0.5.")
        if self.end_below > self.begin_above:
            raise FlowlessError(
                f"end_below is {self.end_below} and begin_above {self.begin_above}; an action must end below the probability at which "
                f"it begins, or at it. Lower end_below."
            )
        for name in ("begin_after", "end_after", "smooth"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise FlowlessError(f"{name} is {value}; it must be a number of seconds, 0 or more.")
        if not 0 < self.end_gap < math.inf:
            raise FlowlessError(f"end_gap is {self.end_gap}; it must be a number of seconds above 0.")


@dataclass(frozen=True, kw_only=True)
class Event:
    """An action of a source: once when it has begun, and once more when it has ended."""

    source: str
    """Name of the source."""
    label: str
    """Name of the class."""
    index: int
    """Its index among the labels."""
    state: Literal["began", "ended"]
    """Whether it goes on."""
    begin_ns: int
    """Time stamp of the first frame of the run that was long enough to begin it, in nanoseconds, of `Answer.pts_ns`."""
    begin_time: float
    """When that frame was decoded: seconds since 1970."""
    end_ns: int | None = None
    """Time stamp of the first frame of the run that ended it, or of the last scored frame before a gap; None while it goes on."""
    end_time: float | None = None
    """When that frame was decoded: seconds since 1970; None while it goes on."""
    peak: float
    """Highest smoothed probability so far."""
    peak_ns: int
    """Time stamp of the frame that had it."""
    why_ended: Literal["", "score", "gap", "source"] = ""
    """Why it ended: the score fell, there was a gap or the time stamps began again, or the source was lost, ended or is closed."""

    @property
    def seconds(self) -> float | None:
        """From begin to end; None while it goes on."""
        return None if self.end_ns is None else (self.end_ns - self.begin_ns) / 1e9

    def to_dict(self) -> dict[str, Any]:
        """Return the line of `flowless watch --json`."""
        return {"kind": "event", **asdict(self), "seconds": self.seconds}


@dataclass(frozen=True)
class _Moment:
    """A scored frame: its time stamp in nanoseconds and its time in seconds since 1970."""

    pts_ns: int
    arrived: float


@dataclass
class _Track:
    """What is kept of one source."""

    last: _Moment
    smoothed: NDArray[np.float64]
    above: dict[int, _Moment] = field(default_factory=dict)
    """Class -> first frame of its present run at or above `begin_above`; classes that have not begun."""
    peaks: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Class -> highest smoothed probability and its time stamp, for the classes of `above`."""
    open: dict[int, Event] = field(default_factory=dict)
    """Class -> its event, which goes on."""
    below: dict[int, _Moment] = field(default_factory=dict)
    """Class of `open` -> first frame of its present run below `end_below`."""


class EventFinder:
    """Finds events in what a watcher yields, for each source apart. For one thread.

    Args:
        labels: The engine's class names, in the order of the scores.
        options: See `EventOptions`.

    Raises:
        FlowlessError: A background label is none of the engine's.
    """

    def __init__(self, labels: Sequence[str], options: EventOptions | None = None) -> None:
        self.labels, self.options = tuple(labels), options or EventOptions()
        for name in self.options.background:
            if name not in self.labels:
                near = difflib.get_close_matches(name, self.labels, n=3, cutoff=0.4) or self.labels[:5]
                raise FlowlessError(f"background is {name!r}, which is no label of this engine. Its labels: {', '.join(near)}, ….")
        self._considered = np.array([name not in self.options.background for name in self.labels])
        self._tracks: dict[str, _Track] = {}

    def see(self, item: Answer | SourceChange) -> list[Event]:
        """Take the next item of a watcher; return the events that began or ended with it, the ended first."""
        if isinstance(item, SourceChange):
            return [] if item.state == "running" else self._close(item.source, "source")
        now, probabilities = _Moment(item.pts_ns, item.arrived), softmax(item.scores)
        track, ended = self._tracks.get(item.source), []
        if track is not None and not 0 <= now.pts_ns - track.last.pts_ns <= self.options.end_gap * 1e9:
            ended, track = self._close(item.source, "gap"), None
        if track is None:
            track = self._tracks[item.source] = _Track(now, probabilities)
        else:
            self._smooth(track, probabilities, (now.pts_ns - track.last.pts_ns) / 1e9)
            track.last = now
        return [*ended, *self._ended(track, now), *self._began(item.source, track, now)]

    def end(self) -> list[Event]:
        """Return the ends of all events that go on: nothing more comes."""
        return [event for source in tuple(self._tracks) for event in self._close(source, "source")]

    def active(self, source: str) -> list[Event]:
        """Return the events of a source that go on."""
        track = self._tracks.get(source)
        return list(track.open.values()) if track else []

    def _smooth(self, track: _Track, probabilities: NDArray[np.float64], seconds: float) -> None:
        share = -math.expm1(-seconds / self.options.smooth) if self.options.smooth else 1.0
        track.smoothed = track.smoothed + share * (probabilities - track.smoothed)

    def _ended(self, track: _Track, now: _Moment) -> list[Event]:
        ended = []
        for index, event in tuple(track.open.items()):
            score = float(track.smoothed[index])
            if score > event.peak:
                track.open[index] = replace(event, peak=score, peak_ns=now.pts_ns)
            if score >= self.options.end_below:
                track.below.pop(index, None)
                continue
            first = track.below.setdefault(index, now)
            if now.pts_ns - first.pts_ns >= self.options.end_after * 1e9:
                ended.append(_ended_event(track.open.pop(index), first, "score"))
                del track.below[index]
        return ended

    def _began(self, source: str, track: _Track, now: _Moment) -> list[Event]:
        high = (track.smoothed >= self.options.begin_above) & self._considered
        for index in [index for index in track.above if not high[index]]:
            del track.above[index], track.peaks[index]
        began = []
        for index in map(int, np.flatnonzero(high)):
            if index in track.open:
                continue
            first, score = track.above.setdefault(index, now), float(track.smoothed[index])
            if score > track.peaks.get(index, (0.0, 0))[0]:
                track.peaks[index] = score, now.pts_ns
            if now.pts_ns - first.pts_ns >= self.options.begin_after * 1e9:
                peak, peak_ns = track.peaks.pop(index)
                track.open[index] = Event(
                    source=source,
                    label=self.labels[index],
                    index=index,
                    state="began",
                    begin_ns=first.pts_ns,
                    begin_time=first.arrived,
                    peak=peak,
                    peak_ns=peak_ns,
                )
                del track.above[index]
                began.append(track.open[index])
        return began

    def _close(self, source: str, why: Literal["gap", "source"]) -> list[Event]:
        track = self._tracks.pop(source, None)
        if track is None:
            return []
        return [_ended_event(event, track.below.get(index, track.last), why) for index, event in track.open.items()]


def _ended_event(event: Event, end: _Moment, why: Literal["score", "gap", "source"]) -> Event:
    return replace(event, state="ended", end_ns=end.pts_ns, end_time=end.arrived, why_ended=why)

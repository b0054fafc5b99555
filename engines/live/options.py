"""The options of a watcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from flowless.engines.streaming.stream import Mode, StreamOptions
from flowless.errors import FlowlessError

#: How a file is read: as its time stamps say, or as fast as it can be scored, in which case no frame is dropped.
Pace = Literal["own", "max"]
Transport = Literal["tcp", "udp"]
#: Of cameras and network streams, where none is given: a longer pause resets the window.
_LIVE_GAP_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """How sources are watched.

    Raises:
        FlowlessError: A value is out of range; all problems are in one message.
    """

    every: int = 1
    """Take every n-th frame of a source."""
    pace: Pace = "own"
    """own: a file's time stamps decide when a frame is shown to the engine. max: as fast as possible; each frame waits for its scores."""
    stride: float = 0.0
    """One result of a source in each such stretch of its time stamps, in seconds: its first frame; 0: every frame that was taken."""
    top: int = 5
    """Classes that are named."""
    mode: Mode = "default"
    """Which frames are scored, see `StreamOptions`."""
    window_seconds: float = 0.0
    """rolling: frames older than this leave the window; 0: no limit."""
    window_frames: int = 0
    """rolling: at most so many frames in the window, 1 to 4096; 0: 64."""
    max_gap_seconds: float | None = None
    """A longer pause between time stamps resets the window; 0: never. None: 5 of cameras and network streams, never of files."""
    transport: Transport = "tcp"
    """How RTSP carries the packets."""
    timeout_seconds: float = 3.0
    """A camera or network stream from which nothing comes for so long has stalled, and is opened again."""
    retries: int | None = None
    """How often in a row a camera or network stream is tried again until it has failed; None: for ever."""
    retry_seconds: float = 0.5
    """Until the first of them; each next one takes twice as long, up to `retry_most_seconds`."""
    retry_most_seconds: float = 10.0
    """Longest time between two tries."""
    keep_pictures: bool = False
    """Keep the newest frame of every source for `Watcher.picture`."""

    def __post_init__(self) -> None:
        """Validate all fields."""
        wrong = [
            f"{name} is {value!r}; it must be an integer of at least {least}"
            for name, value, least in (("every", self.every, 1), ("top", self.top, 1), ("retries", self.retries, 0))
            if not (name == "retries" and value is None) and (type(value) is not int or value < least)
        ]
        seconds = {"stride": 0.0, "window_seconds": 0.0, "max_gap_seconds": 0.0, "retry_seconds": 0.001, "retry_most_seconds": 0.001}
        for name, least in {**seconds, "timeout_seconds": 0.1}.items():
            value = getattr(self, name)
            if value is None and name == "max_gap_seconds":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= 1e6:
                wrong.append(f"{name} is {value!r}; it must be a number of seconds from {least:g} to 1000000")
        for name, allowed in (("pace", get_args(Pace)), ("transport", get_args(Transport))):
            if getattr(self, name) not in allowed:
                wrong.append(f"{name} is {getattr(self, name)!r}; it must be {' or '.join(allowed)}")
        if wrong:
            raise FlowlessError("; ".join(wrong) + ".")
        self.stream(live=False)

    def stream(self, *, live: bool) -> StreamOptions:
        """Return the options of a source's stream."""
        gap = self.max_gap_seconds if self.max_gap_seconds is not None else _LIVE_GAP_SECONDS * live
        return StreamOptions(
            mode=self.mode,
            window_frames=self.window_frames,
            window_ns=round(self.window_seconds * 1e9),
            max_gap_ns=round(gap * 1e9),
        )

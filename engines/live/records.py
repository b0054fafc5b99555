"""What a watcher yields: an answer for a frame of a source, or a change of a source's state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from flowless.engines.engine import Label

#: `connecting`: being opened. `running`: frames arrive. `waiting`: lost or not there, tried again later. `ended`: the file's last frame was
#: read. `failed`: given up.
SourceState = Literal["connecting", "running", "waiting", "ended", "failed"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The scores at one frame of a source."""

    source: str
    """Name of the source."""
    frame: int
    """The frame's ordinal among those that the source has decoded, from 0; it goes on after a reconnect."""
    pts_ns: int
    """The frame's time stamp in nanoseconds: the stream's own, from its first frame on; it never decreases between two resets."""
    arrived: float
    """When the frame was decoded: seconds since 1970."""
    latency: float
    """Seconds from then to the scores."""
    top: tuple[Label, ...]
    """Most likely classes first."""
    scores: np.ndarray = field(repr=False, compare=False)
    """float32 `[classes]`: the network's scores, averaged over the window's views."""
    dropped: int
    """Frames of the source so far that no answer was given for, because a newer one came first."""

    def to_dict(self) -> dict[str, Any]:
        """Return the line of `flowless watch --json`."""
        best = self.top[0]
        return {
            "kind": "answer",
            "source": self.source,
            "frame": self.frame,
            "pts_ns": self.pts_ns,
            "arrived": self.arrived,
            "latency": self.latency,
            "label": best.label,
            "score": best.score,
            "top": [{"label": item.label, "index": item.index, "score": item.score} for item in self.top],
            "dropped": self.dropped,
        }


@dataclass(frozen=True, kw_only=True)
class SourceChange:
    """A source that changed its state."""

    source: str
    """Name of the source."""
    state: SourceState
    """Its new state."""
    reason: str = ""
    """Why, in one line; empty where nothing went wrong."""
    retry_in: float | None = None
    """waiting: seconds until it is tried again."""
    reconnects: int = 0
    """How often it has been opened again."""

    def to_dict(self) -> dict[str, Any]:
        """Return the line of `flowless watch --json`."""
        document = {"kind": "source", "source": self.source, "state": self.state, "reason": self.reason}
        return {**document, "retry_in": self.retry_in, "reconnects": self.reconnects}


@dataclass(frozen=True, kw_only=True)
class SourceStatus:
    """A source as it is now."""

    name: str
    """Its name."""
    address: str
    """Where its frames come from, without user and password."""
    state: SourceState
    """Its state."""
    frames: int
    """Frames decoded so far."""
    dropped: int
    """Frames that were taken and that no answer was given for, because a newer one or a reset came first."""
    answered: int
    """Frames that were scored."""
    reconnects: int
    """How often it has been opened again."""
    width: int
    """Columns of its newest frame, upright; 0 before the first."""
    height: int
    """Rows of its newest frame; 0 before the first."""
    reason: str
    """Why it is waiting or has failed, in one line; empty otherwise."""

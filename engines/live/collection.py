"""How long a batch waits for more frames: not at all while the engine has time to spare, up to its own time when it has none."""

from __future__ import annotations

#: Utilisation from which on a batch waits. Below it the wait would only delay; each frame is scored when it comes.
_BUSY = 0.8
#: Weight of the newest batch in the running estimates.
_NEWEST = 0.1


class CollectionWindow:
    """Running estimates of the engine's time and utilisation, and the wait that follows from them.

    A longer wait makes fewer and larger batches. It lowers the utilisation, which shortens the wait: the two settle.

    Attributes:
        engine_seconds: Estimate of a batch's time; 0 before the first.
        utilisation: Estimate of the share of time in which the engine runs, 0 to 1.
    """

    def __init__(self) -> None:
        self.engine_seconds = 0.0
        self._cycle = 0.0
        self._ended: float | None = None

    def ran(self, started: float, ended: float) -> None:
        """Note that a batch ran between two times in seconds."""
        busy, cycle = ended - started, ended - (started if self._ended is None else self._ended)
        first = self._ended is None
        self._ended = ended
        self.engine_seconds = busy if first else _mixed(self.engine_seconds, busy)
        # The first batches include warming up, and say nothing of the load.
        self._cycle = 2 * busy if first else _mixed(self._cycle, cycle)

    @property
    def utilisation(self) -> float:
        """Share of time in which the engine runs, 0 to 1."""
        return min(1.0, self.engine_seconds / self._cycle) if self._cycle > 0 else 0.0

    @property
    def seconds(self) -> float:
        """Longest time that a batch waits for more frames."""
        return self.engine_seconds * max(0.0, (self.utilisation - _BUSY) / (1 - _BUSY))


def _mixed(old: float, new: float) -> float:
    return (1 - _NEWEST) * old + _NEWEST * new

"""How many frames a batch takes and how long it waits for them, from running estimates of what the engine takes."""

from __future__ import annotations

#: Utilisation from which on a batch waits. Below it the wait would only delay; each frame is scored when it comes.
_BUSY = 0.8
#: Weight of the newest batch in the running estimates.
_NEWEST = 0.1
#: A larger batch pays where it saves at least this share of a frame's time; smaller ones delay each frame less.
_SAVES = 0.1
#: Batches of a size that are not counted, since libraries choose kernels and allocate, and then those until it counts as measured.
_WARM_UP, _MEASURED = 1, 2


class CollectionWindow:
    """Running estimates of the engine's time and utilisation, and the batch size and the wait that follow from them.

    On a GPU a batch of sixteen frames takes little longer than one frame; on a busy CPU sixteen times as long, and then each of them would
    wait for all. So the engine's time for a frame is measured at every size, up to a factor of two, and the smallest size is taken beside
    which larger ones save less than a tenth. A longer wait makes fewer and larger batches. It lowers the utilisation, which shortens the
    wait: the two settle.

    Attributes:
        engine_seconds: Estimate of a batch's time; 0 before the first.
        utilisation: Estimate of the share of time in which the engine runs, 0 to 1.
    """

    def __init__(self) -> None:
        self.engine_seconds = 0.0
        self._cycle = 0.0
        self._ended: float | None = None
        self._frame_seconds: dict[int, float] = {}  # of batches of at least 2**key frames
        self._counts: dict[int, int] = {}

    def ran(self, frames: int, started: float, ended: float) -> None:
        """Note that a batch of frames ran between two times in seconds."""
        busy, cycle = ended - started, ended - (started if self._ended is None else self._ended)
        first = self._ended is None
        self._ended = ended
        self.engine_seconds = busy if first else _mixed(self.engine_seconds, busy)
        # The first batches include warming up, and say nothing of the load.
        self._cycle = 2 * busy if first else _mixed(self._cycle, cycle)
        size = frames.bit_length() - 1
        count = self._counts[size] = self._counts.get(size, 0) + 1
        if count > _WARM_UP:
            self._frame_seconds[size] = _mixed(self._frame_seconds.get(size, busy / frames), busy / frames)

    def frames(self, ready: int) -> int:
        """Return how many of `ready` frames, at least 1, the next batch takes; sizes that were not measured come first."""
        largest = ready.bit_length() - 1
        unknown = [size for size in range(largest + 1) if self._counts.get(size, 0) < _WARM_UP + _MEASURED]
        size = max(unknown) if unknown else self._best(largest)
        return ready if size == largest else 2**size

    @property
    def utilisation(self) -> float:
        """Share of time in which the engine runs, 0 to 1."""
        return min(1.0, self.engine_seconds / self._cycle) if self._cycle > 0 else 0.0

    @property
    def seconds(self) -> float:
        """Longest time that a batch waits for more frames; 0 where larger batches save nothing."""
        if self._frame_seconds and not self._best(max(self._frame_seconds)):
            return 0.0
        return self.engine_seconds * max(0.0, (self.utilisation - _BUSY) / (1 - _BUSY))

    def _best(self, largest: int) -> int:
        """Return the smallest size whose time for a frame is near the least, as a power of two."""
        known = {size: seconds for size, seconds in self._frame_seconds.items() if size <= largest}
        least = min(known.values())
        return min(size for size, seconds in known.items() if (1 - _SAVES) * seconds <= least)


def _mixed(old: float, new: float) -> float:
    return (1 - _NEWEST) * old + _NEWEST * new

"""Speed of an engine beside the kept engines of higher precision, timed interleaved on one clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flowless.timing import time_interleaved

#: Timed rounds, in each of which every engine runs once.
ROUNDS = 15


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Median latency of an engine, and of the fastest engine of higher precision."""

    own_ms: float
    """Latency of the engine, in ms a clip."""
    fastest: str | None
    """Precision of the fastest engine of higher precision; None where there is none."""
    fastest_ms: float | None
    """Its latency, in ms a clip."""

    @property
    def faster(self) -> bool:
        """Whether the engine is faster than every one of higher precision."""
        return self.fastest_ms is None or self.own_ms < self.fastest_ms


def interleaved_ms(runners: Mapping[str, Callable[[np.ndarray], Any]], clip: np.ndarray) -> dict[str, float]:
    """Return each runner's median latency in ms; only engines that were timed interleaved can be compared.

    Args:
        runners: Name -> engine.
        clip: uint8 `[1, N, m, H, W, 3]`.
    """
    timings = time_interleaved({name: partial(run, clip) for name, run in runners.items()}, runs=ROUNDS, warmup=2, warmup_each=1)
    return {name: timing.p50_ms for name, timing in timings.items()}


def compare_speed(
    engine: Callable[[np.ndarray], Any], higher: Mapping[str, Callable[[np.ndarray], Any]], clip: np.ndarray, *, precision: str
) -> Speed:
    """Time an engine beside the engines of higher precision.

    Args:
        engine: The engine.
        higher: Precision -> engine of that precision.
        clip: uint8 `[1, N, m, H, W, 3]`.
        precision: The engine's precision, which is not among `higher`.
    """
    found = interleaved_ms({**higher, precision: engine}, clip)
    own = found.pop(precision)
    fastest = min(found, key=lambda name: found[name], default=None)
    return Speed(own_ms=own, fastest=fastest, fastest_ms=None if fastest is None else found[fastest])

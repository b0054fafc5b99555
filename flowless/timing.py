"""Timing that survives a noisy machine: several runs, medians and percentiles, runners taken in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Durations of one thing done several times, in milliseconds."""

    runs: int
    minimum_ms: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarise durations given in seconds."""
        values = np.asarray(seconds, dtype=np.float64) * 1e3
        p50, p99 = np.percentile(values, [50, 99])
        return cls(runs=len(values), minimum_ms=round(float(values.min()), 3), p50_ms=round(float(p50), 3), p99_ms=round(float(p99), 3))

    def per_second(self, items: float = 1.0) -> float:
        """Return items per second when one run handles `items`, by the median."""
        return items / (self.p50_ms / 1e3)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def time_in_turn(
    runners: Mapping[str, Callable[[], object]],
    *,
    runs: int,
    warm_up: int = 1,
    settle: int = 0,
    every: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    after_each: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time every runner `runs` times, one after the other in each round, so that a slow minute hits all alike.

    Args:
        runners: Name -> what to time.
        runs: Rounds.
        warm_up: Untimed calls of each runner before the first round.
        settle: Untimed calls of a runner before each timed one. Engines want one: whoever follows a runner finds caches full of its
            numbers and its own threads asleep, which costs the quick ones most, and an app calls one engine again and again.
        every: Rounds from one turn of a runner to its next, where that is not 1: for one that takes as long as all others together.
        clock: Returns seconds; a test passes its own.
        after_each: Called after every round.
    """
    for runner in runners.values():
        for _ in range(warm_up):
            runner()
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(runs):
        for name, runner in runners.items():
            if number % (every or {}).get(name, 1):
                continue
            for _ in range(settle):
                runner()
            start = clock()
            runner()
            seconds[name].append(clock() - start)
        after_each()
    return {name: Timing.of(values) for name, values in seconds.items()}

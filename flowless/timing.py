"""Timing on a noisy machine: several interleaved runs of each runner, summarised by median and percentiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Durations of repeated runs of one runner, in milliseconds."""

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
        """Return the throughput in items per second of a run that processes `items`, by the median duration."""
        return items / (self.p50_ms / 1e3)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def time_interleaved(
    runners: Mapping[str, Callable[[], object]],
    *,
    runs: int,
    warmup: int = 1,
    warmup_each: int = 0,
    stride: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    after_each: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time the runners interleaved: each round runs every runner once, so that a slow phase of the machine affects all alike.

    Args:
        runners: Name -> function to time.
        runs: Rounds.
        warmup: Untimed calls of each runner before the first round.
        warmup_each: Untimed calls of a runner before each timed call. Use 1 for engines: the previous runner leaves its data in the
            caches and this runner's threads asleep, which an application that calls one engine repeatedly does not see.
        stride: Name -> n, to time a slow runner in every n-th round alone.
        clock: Returns seconds; tests pass their own.
        after_each: Called after every round.
    """
    for runner in runners.values():
        for _ in range(warmup):
            runner()
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(runs):
        for name, runner in runners.items():
            if number % (stride or {}).get(name, 1):
                continue
            for _ in range(warmup_each):
                runner()
            start = clock()
            runner()
            seconds[name].append(clock() - start)
        after_each()
    return {name: Timing.of(values) for name, values in seconds.items()}

"""Timing with a fake clock."""

from __future__ import annotations

import pytest

from flowless.timing import Timing, time_interleaved


def test_percentiles_and_rates() -> None:
    timing = Timing.of([i / 1000 for i in range(1, 102)])
    assert (timing.runs, timing.minimum_ms, timing.p50_ms, timing.p99_ms) == (101, 1.0, 51.0, 100.0)
    assert timing.per_second(4) == pytest.approx(4 / 0.051)


def test_interleaving_warm_up_and_stride() -> None:
    now = 0.0
    calls: list[str] = []

    def runner(name: str, seconds: float) -> None:
        nonlocal now
        calls.append(name)
        now += seconds

    timings = time_interleaved({"a": lambda: runner("a", 0.010), "b": lambda: runner("b", 0.030)}, runs=3, warmup=1, clock=lambda: now)
    assert "".join(calls) == "ab" + "ab" * 3
    assert timings["a"].p50_ms == pytest.approx(10)
    assert timings["b"].p50_ms == pytest.approx(30)
    assert timings["a"].runs == 3
    calls.clear()
    timings = time_interleaved({"a": lambda: runner("a", 0.010), "b": lambda: runner("b", 0.030)}, runs=2, warmup_each=1, clock=lambda: now)
    assert "".join(calls) == "ab" + "aabb" * 2, "each timed call follows an untimed call of the same runner"
    assert timings["b"].p50_ms == pytest.approx(30)
    calls.clear()
    runners = {"a": lambda: runner("a", 0.010), "b": lambda: runner("b", 0.030)}
    timings = time_interleaved(runners, runs=4, warmup=0, stride={"b": 3}, clock=lambda: now)
    assert "".join(calls) == "abaaab", "a runner with stride 3 runs in every third round"
    assert (timings["a"].runs, timings["b"].runs) == (4, 2)

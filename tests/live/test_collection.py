"""The size of a batch and the wait for it follow from what the engine takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowless.engines.live.collection import CollectionWindow


def watched(seconds_of: Callable[[int], float], *, ready: int, idle: float = 0.0, batches: int = 200) -> tuple[CollectionWindow, list[int]]:
    """Run batches of an engine that takes `seconds_of(frames)`, with the same number of frames ready each time."""
    window, now, sizes = CollectionWindow(), 0.0, []
    for _ in range(batches):
        size = window.frames(ready)
        window.ran(size, now, now + seconds_of(size))
        now += seconds_of(size) + idle
        sizes.append(size)
    return window, sizes


def test_a_batch_takes_all_where_that_saves_time() -> None:
    window, sizes = watched(lambda frames: 0.010 + 0.001 * frames, ready=15)
    assert sizes[0] == 15, "before anything is measured"
    assert set(sizes[-100:]) == {15}
    assert window.seconds > 0, "it waits for more, since the engine never pauses"


def test_a_frame_waits_for_no_other_where_a_batch_saves_nothing() -> None:
    window, sizes = watched(lambda frames: 0.020 * frames, ready=16)
    assert set(sizes) == {1, 2, 4, 8, 16}, "each was measured"
    assert set(sizes[-100:]) == {1}
    assert window.seconds == 0


def test_the_smallest_size_beside_which_larger_ones_save_little() -> None:
    """Two frames are as fast as one, four take their full time each."""
    _, sizes = watched(lambda frames: 0.020 * max(1.0, frames / 4), ready=16)
    assert set(sizes[-100:]) == {4}


def test_sizes_that_are_not_ready_are_not_taken() -> None:
    window, _ = watched(lambda frames: 0.010 + 0.001 * frames, ready=16)
    assert [window.frames(ready) for ready in (1, 2, 3, 7, 16, 17)] == [1, 2, 3, 7, 16, 17]


def test_a_size_that_has_become_slow_is_left() -> None:
    window, _ = watched(lambda frames: 0.020 * frames, ready=16)
    for number in range(60):
        window.ran(1, 100 + number, 100 + number + 0.06)
    assert window.frames(16) > 1


def test_the_first_batch_of_a_size_is_warm_up() -> None:
    seen: set[int] = set()

    def seconds(frames: int) -> float:
        first = frames not in seen
        seen.add(frames)
        return 0.020 * frames + 5.0 * first

    _, sizes = watched(seconds, ready=4)
    assert set(sizes[-100:]) == {1}


@pytest.mark.parametrize(("idle", "waits"), [(0.1, False), (0.0, True)])
def test_only_a_busy_engine_waits(idle: float, waits: bool) -> None:
    window, _ = watched(lambda frames: 0.010 + 0.001 * frames, ready=8, idle=idle)
    assert (window.seconds > 0) == waits
    assert window.seconds <= window.engine_seconds

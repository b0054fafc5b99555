"""One random schedule drives Python's streams and the C interface's: every answer, who answered, and every counter are the same.

The schedule pushes frames of changing sizes with time stamps that leap and fall back, resets, looks, and steps over some of the streams.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from c_interface import ONLINE, ROLLING, CEngine, CStream, Library, StatusError
from engine_pairs import MS, both, changed_copy, noise

from flowless.engines.engine import Engine
from flowless.engines.streaming.stream import Stream, StreamOptions, step
from flowless.errors import FlowlessError

MODES = {"default": 0, "rolling": ROLLING, "online": ONLINE}
#: Of a stream's options.
WINDOWS = (
    {"window_frames": 1},
    {"window_frames": 5},
    {"window_frames": 12},
    {"window_ns": 80 * MS},
    {"window_frames": 7, "window_ns": 200 * MS},
    {},
)
SIZES = ((60, 80), (48, 56), (90, 50), (33, 140), (40, 44))
#: Name of a bundle -> whether its streams may be online.
BUNDLES = {"clips of three frames": False, "clips of single frames": True, "memory": True, "state": True, "state of three frames": True}


class Pair:
    """A stream in Python and the same in C++."""

    def __init__(self, mine: CEngine, theirs: Engine, options: StreamOptions) -> None:
        numbers = {name: getattr(options, name) for name in ("window_frames", "window_ns", "max_gap_ns")}
        self.cpp: CStream = mine.stream(mode=MODES[options.mode], **numbers)
        self.python = Stream(theirs, options)
        self.time = 0

    def push(self, frame: np.ndarray, time: int) -> None:
        self.cpp.push(frame, pts_ns=time)
        self.python.push(frame, time)
        self.time = time

    def reset(self) -> None:
        self.cpp.reset()
        self.python.reset()

    def same_counters(self) -> None:
        one, other = self.cpp.state, self.python.state
        for name in ("pushed", "replaced", "scored", "resets", "ready", "frames", "pts_ns"):
            assert getattr(one, name) == getattr(other, name), name


def random_options(generator: random.Random, index: int, *, online: bool) -> StreamOptions:
    """Return the options of stream `index`: every window occurs, and every other stream is reset by gaps."""
    mode = generator.choice(("default", "online", "rolling") if online else ("default", "rolling"))
    window = WINDOWS[index % len(WINDOWS)] if mode == "rolling" or not online else {}
    return StreamOptions(mode=mode, max_gap_ns=300 * MS if index % 2 else 0, **window)


def next_time(generator: random.Random, time: int) -> int:
    leap = generator.random()
    if leap < 0.05:
        return time - generator.choice((1, 70 * MS, 10_000 * MS))
    if leap < 0.1:
        return time + generator.choice((0, 300 * MS, 300 * MS + 1, 5000 * MS))
    return time + generator.choice((33 * MS, 40 * MS, 41 * MS))


def compare_step(mine: CEngine, theirs: Engine, pairs: Sequence[Pair]) -> list[np.ndarray]:
    """Step both over the same streams; return the rows that were answered."""
    scores, answered = mine.step([pair.cpp for pair in pairs])
    expected = step(theirs, [pair.python for pair in pairs])
    assert answered.tolist() == [row is not None for row in expected]
    for place, row in enumerate(expected):
        assert np.isnan(scores[place]).all() if row is None else scores[place].tobytes() == row.tobytes(), place
    return [row for row in expected if row is not None]


def drive(mine: CEngine, theirs: Engine, pairs: Sequence[Pair], generator: random.Random, *, events: int) -> Counter[str]:
    """Run a schedule; return how often each thing happened, and how many scores differ."""
    happened: Counter[str] = Counter()
    rows: list[np.ndarray] = []
    for number in range(events):
        what = generator.choices(("push", "reset", "step"), (6, 0.6, 3))[0]
        happened[what] += 1
        pair = generator.choice(pairs)
        if what == "push":
            (frame,) = noise(1, seed=number, size=generator.choice(SIZES))
            pair.push(frame, next_time(generator, pair.time))
        elif what == "reset":
            pair.reset()
        else:
            chosen = generator.choices(pairs, k=generator.randint(1, len(pairs) + 2))  # some twice
            rows += compare_step(mine, theirs, chosen)
            happened["none"] += len(chosen)
        for one in pairs if what == "step" else [pair]:
            one.same_counters()
    rows += compare_step(mine, theirs, pairs)
    happened["rows"] = len(rows)
    happened["different"] = len({row.tobytes() for row in rows})
    happened["resets"] = sum(pair.python.state.resets for pair in pairs)
    happened["replaced"] = sum(pair.python.state.replaced for pair in pairs)
    return happened


@pytest.fixture(scope="module")
def bundles(built: Path, film_bundles: dict[str, Path], streaming_bundles: dict[str, Path]) -> dict[str, Path]:
    paths = (built, film_bundles["offline"], film_bundles["online"], streaming_bundles["tsm-r18"], streaming_bundles["pan-lite-r18"])
    return dict(zip(BUNDLES, paths, strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BUNDLES)
def test_a_random_schedule(c_library: Library, bundles: dict[str, Path], tmp_path: Path, name: str, seed: int) -> None:
    generator = random.Random(f"{name} {seed}")
    views = {"crop": "three", "sampling": "two-clip", "average": "softmax"} if seed == 2 else {}
    mine, theirs = both(c_library, changed_copy(bundles[name], tmp_path / "bundle", **views))
    pairs = [Pair(mine, theirs, random_options(generator, index, online=BUNDLES[name])) for index in range(6)]
    happened = drive(mine, theirs, pairs, generator, events=260)
    assert happened["rows"] > 50
    assert happened["different"] > 0.9 * happened["rows"]
    assert happened["none"] > happened["rows"]
    assert happened["resets"] > happened["reset"] > 3
    assert happened["replaced"] > 20


def test_more_views_than_one_batch_has(c_library: Library, bundles: dict[str, Path], tmp_path: Path) -> None:
    mine, theirs = both(c_library, changed_copy(bundles["state of three frames"], tmp_path / "bundle", crop="three"))
    generator = random.Random(4)
    pairs = [Pair(mine, theirs, random_options(generator, index, online=True)) for index in range(30)]
    for turn in range(3):
        for number, pair in enumerate(pairs):
            if (number + turn) % 4:
                pair.push(noise(1, seed=100 * turn + number)[0], 40 * MS * turn)
        assert 20 < len(compare_step(mine, theirs, pairs)) < 30
    for pair in pairs:
        pair.same_counters()


@pytest.mark.parametrize(
    "options", [{"mode": "online", "window_frames": 3}, {"mode": "online", "window_ns": 1}, {"window_frames": 4097}, {"max_gap_ns": -1}]
)
def test_what_one_refuses_the_other_refuses(c_library: Library, bundles: dict[str, Path], options: dict) -> None:
    mine, theirs = both(c_library, bundles["state"])
    with pytest.raises(FlowlessError):
        Stream(theirs, StreamOptions(**options))
    with pytest.raises(StatusError):
        mine.stream(**{**options, "mode": MODES[options.get("mode", "default")]})

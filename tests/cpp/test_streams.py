"""Streams of the C interface: a rolling clip is the clip of a video of the window's frames; an online stream is Python's `Online`."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from c_interface import ONLINE, ROLLING, CEngine, CStream, Library, StatusError
from engine_pairs import MS, noise, offline

import flowless
from flowless.engines.engine import Engine
from flowless.engines.streaming.online import Online


@pytest.fixture(scope="module")
def rolling(c_library: Library, built: Path) -> tuple[CEngine, Engine]:
    return CEngine(c_library, built, target="openvino"), flowless.load(built, "openvino")


@pytest.fixture(scope="module")
def online(c_library: Library, film_bundles: dict[str, Path]) -> tuple[CEngine, Engine]:
    return CEngine(c_library, film_bundles["online"], target="openvino"), flowless.load(film_bundles["online"], "openvino")


def test_every_window_is_scored_as_a_video_of_its_frames(rolling: tuple[CEngine, Engine]) -> None:
    mine, theirs = rolling
    frames, stream = noise(30), mine.stream(window_frames=12)
    for number, frame in enumerate(frames):
        stream.push(frame, pts_ns=40 * MS * number)
        scores, answered = mine.step([stream])
        assert answered.all()
        assert np.array_equal(scores[0], offline(theirs, frames[max(0, number - 11) : number + 1])), number
    assert stream.state.frames == 12
    assert stream.state.pts_ns == 29 * 40 * MS


def test_a_window_of_time(rolling: tuple[CEngine, Engine]) -> None:
    mine, theirs = rolling
    times = [0, 10, 50, 60, 200, 210, 215, 400]
    frames, stream = noise(len(times)), mine.stream(window_ns=100 * MS)
    for number, at in enumerate(times):
        stream.push(frames[number], pts_ns=at * MS)
        scores, _ = mine.step([stream])
        expected = [frame for frame, when in zip(frames, times, strict=True) if at - 100 <= when <= at]
        assert np.array_equal(scores[0], offline(theirs, expected)), number


@pytest.mark.parametrize(("times", "resets"), [([0, 40, 80, 2000, 2040], 1), ([0, 40, 20, 60], 1), ([0, 1000, 2000], 0), ([500, 540], 0)])
def test_a_gap_resets_a_stream(rolling: tuple[CEngine, Engine], times: list[int], resets: int) -> None:
    mine, theirs = rolling
    frames, stream = noise(len(times)), mine.stream(max_gap_ns=1000 * MS)
    for frame, at in zip(frames, times, strict=True):
        stream.push(frame, pts_ns=at * MS)
    scores, _ = mine.step([stream])
    assert stream.state.resets == resets
    late = [number for number in range(1, len(times)) if not 0 <= times[number] - times[number - 1] <= 1000]
    assert np.array_equal(scores[0], offline(theirs, frames[late[-1] if late else 0 :]))


def test_an_online_stream_is_pythons(online: tuple[CEngine, Engine]) -> None:
    mine, theirs = online
    stream, reference = mine.stream(), Online(theirs)
    for number, frame in enumerate(noise(12)):
        stream.push(frame)
        scores, answered = mine.step([stream])
        assert answered.all()
        assert np.array_equal(scores[0], reference.push(frame)), number


def test_an_offline_engine_may_run_online(c_library: Library, film_bundles: dict[str, Path]) -> None:
    mine, theirs = CEngine(c_library, film_bundles["offline"], target="openvino"), flowless.load(film_bundles["offline"], "openvino")
    stream, reference = mine.stream(mode=ONLINE), Online(theirs)
    for frame in noise(8):
        stream.push(frame)
        assert np.array_equal(mine.step([stream])[0][0], reference.push(frame))


def test_an_online_engine_may_run_rolling(online: tuple[CEngine, Engine]) -> None:
    mine, theirs = online
    frames, stream = noise(9), mine.stream(mode=ROLLING, window_frames=6)
    for number, frame in enumerate(frames):
        stream.push(frame)
        assert np.array_equal(mine.step([stream])[0][0], offline(theirs, frames[max(0, number - 5) : number + 1]))


def test_the_newest_frame_replaces_the_one_that_waits(online: tuple[CEngine, Engine]) -> None:
    mine, theirs = online
    stream, reference, frames = mine.stream(), Online(theirs), noise(9)
    for number, frame in enumerate(frames):
        stream.push(frame)
        if number % 3 == 2:
            assert np.array_equal(mine.step([stream])[0][0], reference.push(frame))
    state = stream.state
    assert (state.pushed, state.replaced, state.scored, state.ready) == (9, 6, 3, 0)


def test_a_reset_forgets(online: tuple[CEngine, Engine]) -> None:
    mine, theirs = online
    stream = mine.stream()
    for frame in noise(5):
        stream.push(frame)
        mine.step([stream])
    stream.push(noise(1, seed=8)[0])
    stream.reset()
    assert not mine.step([stream])[1].any(), "the frame that waited is forgotten as well"
    (again,) = noise(1, seed=9)
    stream.push(again)
    assert np.array_equal(mine.step([stream])[0][0], Online(theirs).push(again))


def test_one_batch_over_those_that_are_ready(rolling: tuple[CEngine, Engine]) -> None:
    mine, theirs = rolling
    streams = [mine.stream(window_frames=8) for _ in range(16)]
    pushed: list[list[np.ndarray]] = [[] for _ in streams]
    for turn in range(4):
        ready = [number for number in range(16) if (number + turn) % 3]
        for number in ready:
            (frame,) = noise(1, seed=100 * turn + number, size=(50 + 4 * number + turn, 70))  # sizes change on the way
            pushed[number].append(frame)
            streams[number].push(frame)
        scores, answered = mine.step(streams)
        assert np.flatnonzero(answered).tolist() == ready
        assert np.isnan(scores[~answered]).all(), "other rows stay as they are"
        for number in ready:
            assert np.array_equal(scores[number], offline(theirs, pushed[number])), (turn, number)
    assert not mine.step(streams)[1].any()


def test_the_same_stream_twice_is_scored_once(rolling: tuple[CEngine, Engine]) -> None:
    mine, _ = rolling
    stream = mine.stream()
    stream.push(noise(1)[0])
    assert mine.step([stream, stream])[1].tolist() == [True, False]


def test_cameras_push_while_the_engine_steps(online: tuple[CEngine, Engine]) -> None:
    mine, _ = online
    streams, stop, frames = [mine.stream() for _ in range(4)], threading.Event(), noise(5)

    def push(number: int) -> None:
        turn = 0
        while not stop.is_set():
            streams[number].push(frames[turn % 5])
            turn += 1
            time.sleep(0.001)

    cameras = [threading.Thread(target=push, args=(number,)) for number in range(3)]  # the fourth has no camera
    for camera in cameras:
        camera.start()
    counts = np.zeros(4, int)
    for _ in range(40):
        scores, answered = mine.step(streams)
        assert np.isfinite(scores[answered]).all()
        counts += answered
    stop.set()
    for camera in cameras:
        camera.join()
    assert (counts[:3] > 0).all()
    assert counts[3] == 0
    for stream in streams[:3]:
        state = stream.state
        assert state.scored + state.replaced + state.ready == state.pushed


def test_closing_an_engine_closes_its_streams(c_library: Library, built: Path) -> None:
    engine = CEngine(c_library, built, target="openvino")
    stream = engine.stream()
    engine.close()
    with pytest.raises(StatusError, match="the stream is closed"):
        stream.push(noise(1)[0])


def test_an_engine_that_is_closed_leaves_no_stream_open(c_library: Library, built: Path) -> None:
    """Another thread opens streams while the engine is closed; none of them stays open without its engine."""
    for _ in range(30):
        engine = CEngine(c_library, built, target="openvino")
        opened: list[CStream] = []

        def open_streams(engine: CEngine = engine, opened: list[CStream] = opened) -> None:
            with pytest.raises(StatusError, match="the engine is closed"):
                while True:
                    opened.append(engine.stream(window_frames=1))

        cameras = threading.Thread(target=open_streams)
        cameras.start()
        while not opened:
            time.sleep(0.0005)
        engine.close()
        cameras.join()
        for stream in opened:
            with pytest.raises(StatusError, match="the stream is closed"):
                stream.reset()

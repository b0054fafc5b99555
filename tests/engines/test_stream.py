"""Streams: a rolling clip is the clip of a video of the window's frames; an online stream is offline scoring of the last N frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from flowless.engines.engine import Engine
from flowless.engines.loading import load
from flowless.engines.streaming.online import Online
from flowless.engines.streaming.stream import Stream, StreamOptions, step
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import resize_and_crop
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import CROPS
from flowless.pipeline.clip.view_scores import average_views

MS = 1_000_000


def noise(count: int, *, seed: int = 0, size: tuple[int, int] = (60, 80)) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8))


def offline(engine: Engine, frames: Sequence[np.ndarray]) -> np.ndarray:
    """Return the scores of a video that consists of these frames."""
    spec = engine.spec
    indices = clip_indices(len(frames), segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    pictures = np.stack([resize_and_crop(frame[None], spec) for frame in frames], axis=1)
    return average_views(engine(np.concatenate([crop[indices] for crop in pictures])), spec.average)


def one(engine: Engine, stream: Stream) -> np.ndarray:
    (scores,) = step(engine, [stream])
    assert scores is not None
    return scores


@pytest.fixture
def rolling(built) -> Engine:
    return load(built, "openvino")


@pytest.fixture(params=["online", "offline"])
def online(request, film_bundles) -> Engine:
    return load(film_bundles[request.param], "openvino")


@pytest.mark.parametrize(("sampling", "crop", "average"), [("centre", "centre", "logits"), ("two-clip", "three", "softmax")])
def test_every_window_is_scored_as_a_video_of_its_frames(sampling, crop, average, rolling, monkeypatch):
    monkeypatch.setattr(rolling, "spec", replace(rolling.spec, sampling=sampling, crop=crop, average=average))
    frames, stream = noise(20), Stream(rolling, StreamOptions(window_frames=12))
    assert stream.views == rolling.spec.views
    for number, frame in enumerate(frames):
        stream.push(frame, 40 * MS * number)
        np.testing.assert_array_equal(one(rolling, stream), offline(rolling, frames[max(0, number - 11) : number + 1]))
    assert stream.state.frames == 12
    assert stream.state.pts_ns == 19 * 40 * MS


def test_a_window_of_time(rolling):
    times = [0, 10, 50, 60, 200, 210, 215, 400]
    frames, stream = noise(len(times)), Stream(rolling, StreamOptions(window_ns=100 * MS))
    for number, at in enumerate(times):
        stream.push(frames[number], at * MS)
        expected = [frame for frame, when in zip(frames, times, strict=True) if at - 100 <= when <= at]
        np.testing.assert_array_equal(one(rolling, stream), offline(rolling, expected))


@pytest.mark.parametrize(("times", "resets"), [([0, 40, 80, 2000, 2040], 1), ([0, 40, 20, 60], 1), ([0, 1000, 2000], 0), ([500, 540], 0)])
def test_a_gap_resets_a_stream(times, resets, rolling):
    frames, stream = noise(len(times)), Stream(rolling, StreamOptions(max_gap_ns=1000 * MS))
    for frame, at in zip(frames, times, strict=True):
        stream.push(frame, at * MS)
    late = [number for number in range(1, len(times)) if not 0 <= times[number] - times[number - 1] <= 1000]
    np.testing.assert_array_equal(one(rolling, stream), offline(rolling, frames[late[-1] if late else 0 :]))
    assert stream.state.resets == resets


def test_an_online_stream_scores_the_frames_that_were_scored_before(online):
    spec, frames = online.spec, noise(12)
    stream, kept = Stream(online, StreamOptions(mode="online")), []
    for number, frame in enumerate(frames):
        stream.push(frame)
        if number % 3 == 1:
            continue  # replaced
        kept.append(resize_and_crop(frame[None], spec)[0])
        clip = np.stack([*[kept[0]] * (spec.segments - len(kept)), *kept[-spec.segments :]])
        np.testing.assert_array_equal(one(online, stream), online(clip[None, :, None])[0])
    state = stream.state
    assert (state.pushed, state.replaced, state.scored, state.ready, state.frames) == (12, 4, 8, False, spec.segments)


def test_the_graphs_own_memory_gives_the_same_scores(film_bundles):
    """A caller may keep the memory that `Engine.step` returns; a stream keeps the frames."""
    engine = load(film_bundles["online"], "openvino")
    reference, memory = Online(engine), None
    for frame in noise(7):
        picture = resize_and_crop(frame[None], engine.spec)
        memory = np.repeat(picture[:, None], engine.spec.segments - 1, axis=1) if memory is None else memory
        scores, memory = engine.step(picture, memory)
        np.testing.assert_array_equal(reference.push(frame), scores[0])


def test_the_mode_by_default_is_the_engines(film_bundles, built):
    assert Stream(load(film_bundles["online"], "openvino")).online
    assert not Stream(load(film_bundles["offline"], "openvino")).online
    engine = load(film_bundles["online"], "openvino")
    frames, stream = noise(9), Stream(engine, StreamOptions(mode="rolling", window_frames=6))
    for number, frame in enumerate(frames):
        stream.push(frame)
        np.testing.assert_array_equal(one(engine, stream), offline(engine, frames[max(0, number - 5) : number + 1]))


def test_a_reset_forgets(online):
    stream = Stream(online, StreamOptions(mode="online"))
    for frame in noise(5):
        stream.push(frame)
        step(online, [stream])
    stream.push(noise(1, seed=8)[0])
    stream.reset()
    assert step(online, [stream]) == [None], "the frame that waited is forgotten as well"
    (again,) = noise(1, seed=9)
    stream.push(again)
    np.testing.assert_array_equal(one(online, stream), Online(online).push(again))


@pytest.mark.parametrize("crop", ["centre", "three"])
def test_one_batch_over_those_that_are_ready(crop, rolling, monkeypatch):
    """Thirty streams with three crops are more views than one batch has."""
    monkeypatch.setattr(rolling, "spec", replace(rolling.spec, crop=crop))
    count = 16 if crop == "centre" else 30
    batches: list[int] = []
    score = rolling.__call__

    class Counted(Engine):
        def __call__(self, clip, **options):  # pyright: ignore
            batches.append(len(clip))
            return score(clip)

    monkeypatch.setattr(rolling, "__class__", Counted)
    streams = [Stream(rolling, StreamOptions(window_frames=8)) for _ in range(count)]
    pushed: list[list[np.ndarray]] = [[] for _ in streams]
    for turn in range(3):
        ready = [number for number in range(count) if (number + turn) % 3]
        for number in ready:
            (frame,) = noise(1, seed=100 * turn + number, size=(50 + 4 * number + turn, 70))  # sizes change on the way
            pushed[number].append(frame)
            streams[number].push(frame)
        batches.clear()
        results = step(rolling, streams)
        assert [number for number, scores in enumerate(results) if scores is not None] == ready
        views = len(ready) * CROPS[rolling.spec.crop]
        assert sum(batches) == views
        assert len(batches) == 1 if views <= 64 else max(batches) <= 64
        for number in ready:
            np.testing.assert_array_equal(results[number], offline(rolling, pushed[number]))
    assert step(rolling, streams) == [None] * count
    streams[0].push(noise(1)[0])
    assert [scores is None for scores in step(rolling, [streams[0], streams[0]])] == [False, True], "the same stream twice"


def test_cameras_push_while_the_engine_steps(online):
    streams, stop, frames = [Stream(online, StreamOptions(mode="online")) for _ in range(4)], threading.Event(), noise(5)

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
    ends = time.monotonic() + 20
    while (counts[:3] < 5).any() and time.monotonic() < ends:
        results = step(online, streams)
        assert all(np.isfinite(scores).all() for scores in results if scores is not None)
        counts += [scores is not None for scores in results]
    stop.set()
    for camera in cameras:
        camera.join()
    assert (counts[:3] >= 5).all()
    assert counts[3] == 0
    for stream in streams[:3]:
        state = stream.state
        assert state.scored + state.replaced + state.ready == state.pushed


def wrong_mode(engine: Engine) -> object:
    return Stream(engine, StreamOptions(mode="online"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: StreamOptions(mode="newest"), "mode is 'newest'"),  # type: ignore[arg-type]
        (lambda _: StreamOptions(window_frames=4097), "window_frames is 4097; it must be an integer from 0 to 4096"),
        (lambda _: StreamOptions(window_ns=-1), "window_ns is -1"),
        (lambda _: StreamOptions(max_gap_ns=1.5), "max_gap_ns is 1.5"),  # type: ignore[arg-type]
        (lambda _: StreamOptions(mode="online", window_frames=8), "window_frames is 8"),
        (wrong_mode, "its segments have 3 frames"),
        (lambda engine: Stream(engine).push(np.zeros((4, 4, 4, 3), np.uint8)), r"the frame is \[4, 4, 4, 3\]"),
        (lambda engine: step(engine, [Stream(load(engine.manifest.folder, "openvino"))]), "another engine's"),
    ],
)
def test_mistakes(make: Callable[[Engine], object], message, rolling):
    with pytest.raises(FlowlessError, match=message):
        make(rolling)

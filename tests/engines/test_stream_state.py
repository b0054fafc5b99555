"""Streams over a streaming engine: the state of the last scored step, and the newest frames, scored or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from flowless.engines.engine import Engine
from flowless.engines.loading import load
from flowless.engines.streaming.online import Online
from flowless.engines.streaming.stream import Stream, StreamOptions, step
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import resize_and_crop
from flowless.pipeline.clip.sampling import clip_indices

NAMES = ["tsm-r18", "pan-lite-r18"]


def noise(count: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 60, 80, 3), dtype=np.uint8))


class Reference:
    """One stream by `Engine.step`, whose caller keeps the newest frames and the state."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pushed: list[np.ndarray] = []
        self.memory: dict[str, np.ndarray] | None = None

    def push(self, frame: np.ndarray) -> None:
        self.pushed.append(resize_and_crop(frame[None], self.engine.spec))

    def score(self) -> np.ndarray:
        memory = self.memory
        if memory is None:
            memory = {item.name: np.zeros((1, *item.shape), item.dtype) for item in self.engine.manifest.state}
        memory["started"][:, 1] = 1
        count = self.engine.spec.frames_per_segment - 1
        if count:
            earlier = self.pushed[-1 - count : -1]
            memory["frames"] = np.stack([self.pushed[0]] * (count - len(earlier)) + earlier, axis=1)
        scores, self.memory = self.engine.step(self.pushed[-1], memory)
        return scores[0]


@pytest.mark.parametrize("name", NAMES)
def test_streams_are_steps_of_the_engine(name, streaming_bundles):
    engine = load(streaming_bundles[name], "openvino")
    assert Stream(engine).online
    assert not Stream(engine, StreamOptions(mode="rolling")).online
    streams, references = [Stream(engine) for _ in range(3)], [Reference(engine) for _ in range(3)]
    for turn in range(9):
        for number, stream in enumerate(streams):
            if turn == 5 and number == 1:
                stream.reset()
                references[1] = Reference(engine)
            for frame in noise((number + turn) % 3, seed=10 * turn + number):
                stream.push(frame)
                references[number].push(frame)
        for number, scores in enumerate(step(engine, streams)):
            assert (scores is not None) == ((number + turn) % 3 > 0)
            if scores is not None:
                np.testing.assert_allclose(scores, references[number].score(), atol=1e-5)
    assert streams[0].state.frames <= engine.spec.frames_per_segment


@pytest.mark.parametrize("name", NAMES)
def test_online_works_with_a_state(name, streaming_bundles):
    engine = load(streaming_bundles[name], "openvino")
    online, reference = Online(engine), Reference(engine)
    for frame in noise(7, seed=1):
        reference.push(frame)
        np.testing.assert_allclose(online.push(frame), reference.score(), atol=1e-5)


def test_rolling_and_online_streams_in_one_step(streaming_bundles):
    engine = load(streaming_bundles["pan-lite-r18"], "openvino")
    rolling, online = Stream(engine, StreamOptions(mode="rolling")), Stream(engine)
    frames, reference = noise(engine.spec.segments * engine.spec.frames_per_segment, seed=2), Reference(engine)
    for frame in frames:
        rolling.push(frame)
        online.push(frame)
        reference.push(frame)
    ours, theirs = step(engine, [rolling, online])
    spec, pictures = engine.spec, np.concatenate([resize_and_crop(frame[None], engine.spec) for frame in frames])
    indices = clip_indices(len(frames), segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    assert ours is not None
    assert theirs is not None
    np.testing.assert_allclose(ours, engine(pictures[indices])[0], atol=1e-5)
    np.testing.assert_allclose(theirs, reference.score(), atol=1e-5)


def fail(*_: object) -> None:
    raise FlowlessError("it failed")


@pytest.mark.parametrize("kind", ["rolling", "online", "tsm-r18", "pan-lite-r18"])
def test_a_step_that_fails_leaves_the_streams_as_they_were(kind, streaming_bundles, film_bundles, monkeypatch):
    bundle = film_bundles["offline" if kind == "rolling" else "online"] if kind in {"rolling", "online"} else streaming_bundles[kind]
    engine = load(bundle, "openvino")
    options = StreamOptions(mode="rolling", window_frames=5) if kind == "rolling" else StreamOptions()
    failed, others = ([Stream(engine, options) for _ in range(3)] for _ in range(2))
    for turn, frame in enumerate(noise(9, seed=4)):
        for number in range(3):
            if (turn + number) % 3:
                failed[number].push(frame, turn)
                others[number].push(frame, turn)
        if turn % 2:
            before = [stream.state for stream in failed]
            with monkeypatch.context() as patch:
                patch.setattr(engine._backend._graph, "run", fail)  # pyright: ignore[reportAttributeAccessIssue]
                with pytest.raises(FlowlessError, match="it failed"):
                    step(engine, failed)
            assert [stream.state for stream in failed if kind != "online"] == [state for state in before if kind != "online"]
        for mine, theirs in zip(step(engine, failed), step(engine, others), strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                assert np.array_equal(mine, theirs), turn
        assert [stream.state for stream in failed] == [stream.state for stream in others]


def test_what_comes_while_a_step_fails(streaming_bundles, monkeypatch):
    """A frame replaces the one that was taken; a reset forgets it."""
    engine = load(streaming_bundles["tsm-r18"], "openvino")
    first, second, third = (Stream(engine) for _ in range(3))
    one, two = noise(2, seed=5)
    for stream in (first, second):
        stream.push(one)

    def fail_late(*_: object) -> None:
        first.push(two)
        second.reset()
        fail()

    with monkeypatch.context() as patch:
        patch.setattr(engine._backend._graph, "run", fail_late)  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(FlowlessError):
            step(engine, [first, second])
    assert (first.state.pushed, first.state.replaced, first.state.ready) == (2, 1, True)
    assert (second.state.resets, second.state.ready) == (1, False)
    third.push(two)
    mine, nothing, theirs = step(engine, [first, second, third])
    assert nothing is None
    assert mine is not None
    assert theirs is not None
    assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_an_engine_that_fails_is_reported_with_its_bundle(streaming_bundles, target, tmp_path):
    """Here the manifest's state is not the graph's, which the libraries notice when they run."""
    bundle = Path(shutil.copytree(streaming_bundles["tsm-r18"], tmp_path / "bundle"))
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    document["state"][0]["shape"][-1] += 1
    (bundle / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    engine = load(bundle, target, "fp32")
    with pytest.raises(FlowlessError, match=rf"bundle: its {target} engine failed \(.*build BUNDLE --target {target} --precision fp32"):
        engine(np.zeros((1, *engine.spec.shape), np.uint8))
    with pytest.raises(FlowlessError, match=rf"bundle: its {target} engine failed \("):
        engine.step(np.zeros((1, *engine.spec.shape[2:]), np.uint8))

"""Streaming engines in C++: the same bits as Python's `Engine.step`, frame by frame, for one stream and for many in a batch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_interface import ROLLING, CEngine, CStream, Library, StatusError
from engine_pairs import both, changed_copy, noise, offline

import flowless
from flowless.engines.backends.openvino_core import computes_in
from flowless.engines.bundle.manifest import MANIFEST, read_manifest
from flowless.engines.engine import Engine
from flowless.engines.streaming.online import Online
from flowless.export.build_engine import build
from flowless.export.precision.calibration import Calibration
from flowless.export.verify.checks import Checks
from flowless.pipeline.clip.preprocess import resize_and_crop
from flowless.pipeline.clip.view_scores import average_views

#: Segments of one frame, and of several.
MODELS = ("tsm-r18", "pan-lite-r18")


class SteppedByHand:
    """One stream with `Engine.step` alone: the state that the step before returned, and the newest m pictures that were pushed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reset()

    def reset(self) -> None:
        self.memory: dict[str, np.ndarray] | None = None
        self.pushed: list[np.ndarray] = []
        self.ready = False

    def push(self, frame: np.ndarray) -> None:
        self.pushed.append(resize_and_crop(frame[None], self.engine.spec))
        self.ready = True

    def step(self) -> np.ndarray:
        assert self.ready
        several, crops = self.engine.spec.frames_per_segment, len(self.pushed[0])
        newest = [self.pushed[max(0, index)] for index in range(len(self.pushed) - several, len(self.pushed))]
        if self.memory is None:
            _, zeros = self.engine.step(newest[-1], None)
            self.memory = {name: np.zeros_like(value) for name, value in zeros.items()}
        if several > 1:
            self.memory["frames"] = np.stack(newest[:-1], axis=1)
        self.memory["started"] = self.memory["started"].copy()
        self.memory["started"][:, 1] = 1
        scores, self.memory = self.engine.step(newest[-1], self.memory)
        self.ready = False
        assert len(scores) == crops
        return average_views(scores, self.engine.spec.average)


@pytest.fixture(params=MODELS)
def engines(c_library: Library, streaming_bundles: dict[str, Path], request: pytest.FixtureRequest) -> tuple[CEngine, Engine]:
    return both(c_library, streaming_bundles[request.param])


def assert_varied(scores: Sequence[np.ndarray]) -> None:
    assert len(np.unique(np.round(scores, 4), axis=0)) > len(scores) // 2, "the scores do not depend on the frames"


def test_it_is_described_as_online(engines: tuple[CEngine, Engine]) -> None:
    mine, theirs = engines
    assert mine.info.online == 1
    assert [mine.info.segments, mine.info.frames] == list(theirs.spec.shape[:2])


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("model", MODELS)
def test_whole_clips(c_library: Library, streaming_bundles: dict[str, Path], model: str, target: str) -> None:
    if target == "onnxruntime" and not os.environ.get("ONNXRUNTIME_ROOT"):
        pytest.skip("ONNXRUNTIME_ROOT is not set: the library is built without ONNX Runtime")
    mine, theirs = both(c_library, streaming_bundles[model], target)
    clips = np.random.default_rng(5).integers(0, 256, (7, *theirs.spec.shape), dtype=np.uint8)
    assert_varied(list(theirs(clips)))
    assert np.array_equal(mine.run(clips), theirs(clips))
    assert np.array_equal(mine.run(clips[:1]), theirs(clips[:1]))


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("model", MODELS)
def test_every_frame_of_a_stream(c_library: Library, streaming_bundles: dict[str, Path], model: str, target: str) -> None:
    """The state is what `Engine.step` returned, from None on."""
    if target == "onnxruntime" and not os.environ.get("ONNXRUNTIME_ROOT"):
        pytest.skip("ONNXRUNTIME_ROOT is not set: the library is built without ONNX Runtime")
    mine, theirs = both(c_library, streaming_bundles[model], target)
    stream, memory, found = mine.stream(), None, []
    for number, frame in enumerate(noise(15)):
        stream.push(frame)
        expected, memory = theirs.step(resize_and_crop(frame[None], theirs.spec), memory)
        scores, answered = mine.step([stream])
        assert answered.all()
        assert np.array_equal(scores, expected), number
        found.append(scores[0])
    assert_varied(found)


def test_frames_that_no_step_scored_are_in_the_segment(engines: tuple[CEngine, Engine]) -> None:
    mine, theirs = engines
    stream, reference, online = mine.stream(), SteppedByHand(theirs), Online(theirs)
    for number, frame in enumerate(noise(24)):
        stream.push(frame)
        reference.push(frame)
        if number % 5 in {0, 3}:
            (scores,), _ = mine.step([stream])
            assert np.array_equal(scores, reference.step()), number
            assert np.array_equal(scores, online.push(frame)), number
        else:
            online.skip(frame)
    state = stream.state
    assert (state.pushed, state.scored, state.replaced, state.ready) == (24, 10, 14, 0)
    assert state.frames == theirs.spec.frames_per_segment


def test_sixteen_streams_in_one_batch(engines: tuple[CEngine, Engine]) -> None:
    """They start and are reset at different times, and miss frames."""
    mine, theirs = engines
    streams, references = [mine.stream() for _ in range(16)], [SteppedByHand(theirs) for _ in range(16)]
    generator = np.random.default_rng(11)
    found = []
    for turn in range(12):
        for number, (stream, reference) in enumerate(zip(streams, references, strict=True)):
            if turn < number // 3:
                continue
            for frame in noise(int(generator.integers(0, 3)), seed=100 * turn + number, size=(50 + number, 70 + turn)):
                stream.push(frame)
                reference.push(frame)
            if generator.random() < 0.1:
                stream.reset()
                reference.reset()
        scores, answered = mine.step(streams)
        expected = [reference.step() if reference.ready else None for reference in references]
        assert answered.tolist() == [row is not None for row in expected]
        for number, row in enumerate(expected):
            assert np.isnan(scores[number]).all() if row is None else np.array_equal(scores[number], row), (turn, number)
        found += [row for row in expected if row is not None]
    assert len(found) > 80
    assert_varied(found)
    assert sum(stream.state.resets for stream in streams) > 5


@pytest.mark.parametrize("model", MODELS)
def test_three_crops_have_a_state_each(c_library: Library, streaming_bundles: dict[str, Path], tmp_path: Path, model: str) -> None:
    bundle = changed_copy(streaming_bundles[model], tmp_path / "three", crop="three", average="softmax")
    mine, theirs = both(c_library, bundle)
    assert mine.info.crops == 3
    streams, references = [mine.stream() for _ in range(2)], [SteppedByHand(theirs) for _ in range(2)]
    for number in range(10):
        for seed in range(2):
            (frame,) = noise(1, seed=2 * number + seed, size=(60, 140))
            streams[seed].push(frame)
            references[seed].push(frame)
        scores, _ = mine.step(streams)
        assert np.array_equal(scores, [reference.step() for reference in references]), number


def test_a_rolling_window_is_scored_as_a_video(engines: tuple[CEngine, Engine]) -> None:
    """One step over streams of both modes."""
    mine, theirs = engines
    rolling, online, reference = mine.stream(mode=ROLLING, window_frames=9), mine.stream(), SteppedByHand(theirs)
    frames = noise(14)
    for number, frame in enumerate(frames):
        rolling.push(frame)
        online.push(frame)
        reference.push(frame)
        scores, _ = mine.step([online, rolling])
        assert np.array_equal(scores[0], reference.step()), number
        assert np.array_equal(scores[1], offline(theirs, frames[max(0, number - 8) : number + 1])), number


def test_a_gap_starts_a_stream_anew(engines: tuple[CEngine, Engine]) -> None:
    mine, theirs = engines
    stream, reference = mine.stream(max_gap_ns=100), SteppedByHand(theirs)
    for frame, at in zip(noise(9), [0, 40, 80, 120, 500, 540, 530, 560, 600], strict=True):
        if at in {500, 530}:
            reference.reset()
        stream.push(frame, pts_ns=at)
        reference.push(frame)
        assert np.array_equal(mine.step([stream])[0][0], reference.step()), at
    assert stream.state.resets == 2


def with_precision(bundle: Path, precision: str, index: Path) -> None:
    """Add an engine for OpenVINO; bf16 is the graph of fp32, compiled with another hint."""
    if precision == "int8":
        calibration = Calibration(index=index, spec=read_manifest(bundle).spec, videos=4)
        build(bundle, target="openvino", precision="int8", checks=Checks(slower=True, parity=False), calibration=calibration)
        return
    document = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    (item,) = [item for item in document["artefacts"] if item["target"] == "openvino"]
    item.update(precision=precision, options={"hint": precision})
    (bundle / MANIFEST).write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_lower_precision(c_library: Library, streaming_bundles: dict[str, Path], tmp_path: Path, shapes: Path, precision: str) -> None:
    """The state is float32 in every precision."""
    if precision == "bf16" and computes_in("bf16") != "bf16":
        pytest.skip("OpenVINO does not compute in bf16 on this processor")
    bundle = Path(shutil.copytree(streaming_bundles["pan-lite-r18"], tmp_path / precision))
    with_precision(bundle, precision, shapes / "train.index.jsonl")
    mine, theirs = both(c_library, bundle, precision=precision)
    exact = flowless.load(streaming_bundles["pan-lite-r18"], "openvino", "fp32", threads=1)
    stream, memory, kept, differ = mine.stream(), None, None, 0
    for number, frame in enumerate(noise(12)):
        picture = resize_and_crop(frame[None], theirs.spec)
        stream.push(frame)
        expected, memory = theirs.step(picture, memory)
        assert np.array_equal(mine.step([stream])[0], expected), number
        fp32, kept = exact.step(picture, kept)
        differ += not np.array_equal(expected, fp32)
    assert differ > 6, "computed in fp32"


def test_an_online_stream_has_no_window(engines: tuple[CEngine, Engine]) -> None:
    mine, _ = engines
    with pytest.raises(StatusError, match="window_frames and window_ns are for rolling streams"):
        mine.stream(window_frames=8)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_graph_with_another_state_than_the_manifests(
    c_library: Library, streaming_bundles: dict[str, Path], tmp_path: Path, target: str
) -> None:
    if target == "onnxruntime" and not os.environ.get("ONNXRUNTIME_ROOT"):
        pytest.skip("ONNXRUNTIME_ROOT is not set: the library is built without ONNX Runtime")
    bundle = Path(shutil.copytree(streaming_bundles["tsm-r18"], tmp_path / "other"))
    original = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    names = [tensor["name"] for tensor in original["state"]]
    assert {"shift_00", "features", "started"} <= set(names)

    def refusal(state: list[dict[str, Any]]) -> str:
        (bundle / MANIFEST).write_text(json.dumps({**original, "state": state}), encoding="utf-8")
        with pytest.raises(StatusError) as caught:
            CEngine(c_library, bundle, target=target)
        return str(caught.value)

    first = original["state"][names.index("shift_00")]
    others = [tensor for tensor in original["state"] if tensor is not first]
    channels, *sides = first["shape"]
    text = refusal([{**first, "shape": [channels + 1, *sides]}, *others])
    assert text.startswith(f"damaged: {bundle}")
    assert "its graph has 'shift_00'" in text
    assert f"mean float32 [B, {channels + 1}, {sides[0]}, {sides[1]}]" in text
    assert "mean uint8 [B" in refusal([{**first, "dtype": "uint8"}, *others])
    text = refusal(others)
    assert f"its graph has {len(names) + 1} inputs" in text
    assert "shift_99" in refusal([{**first, "name": "shift_99"}, *others])


def test_closing_the_engine_of_a_stream_with_a_state(c_library: Library, streaming_bundles: dict[str, Path]) -> None:
    engine = CEngine(c_library, streaming_bundles["tsm-r18"], target="openvino")
    stream: CStream = engine.stream()
    stream.push(noise(1)[0])
    engine.close()
    with pytest.raises(StatusError, match="the stream is closed"):
        stream.push(noise(1)[0])

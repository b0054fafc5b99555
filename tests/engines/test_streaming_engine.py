"""Steps of a streaming engine: several streams, arrays on a device, frames that are not scored, and mistakes that are reported."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from simulated_gpu import SimulatedContext, SimulatedGpu, at
from video_files import all_frames

import flowless
from flowless import cuda_driver
from flowless.engines.backends.backend import open_backend
from flowless.engines.backends.tensorrt_backend import TensorRt
from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.device.device_array import DeviceArray, place
from flowless.engines.engine import Engine
from flowless.engines.streaming.memory import OnlineBackend
from flowless.engines.streaming.online import Online
from flowless.engines.streaming.state import NEXT
from flowless.engines.streaming.streaming_backend import StreamingBackend, zero_state
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import resize_and_crop

N, H, W = 4, 40, 44
TARGETS = ["openvino", "onnxruntime"]
NAMES = ["tsm-r18", "pan-lite-r18"]


@pytest.fixture(params=[f"{name} {target}" for name in NAMES for target in TARGETS])
def engine(request, streaming_bundles) -> Engine:
    name, target = request.param.split()
    found = flowless.load(streaming_bundles[name], target, warm_up=2)
    assert (found.streaming, found.online) == (True, False)
    return found


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, H, W, 3), dtype=np.uint8)


def run(engine: Engine, film: np.ndarray) -> np.ndarray:
    """Return the scores at every frame of streams, for frames `[T, B, H, W, 3]`: `[T, B, classes]`."""
    memory, scores = None, []
    for frames in film:
        now, memory = engine.step(frames, memory)
        scores.append(now)
    return np.stack(scores)


def test_a_batch_is_so_many_streams(engine):
    film = noise(6, 3)
    together = run(engine, film)
    for stream in range(3):
        np.testing.assert_allclose(together[:, stream], run(engine, film[:, stream : stream + 1])[:, 0], atol=1e-4)
    assert np.abs(together[:, 0] - together[:, 1]).max() > 0.01


def test_a_stream_may_start_beside_one_that_runs(engine):
    """Zeros start a stream in one row of a batch, while the other row goes on."""
    film = noise(5, 2)
    _, first = engine.step(film[0, :1])
    zeros = zero_state(engine.manifest.state, 1)
    memory = {name: np.concatenate([first[name], zeros[name]]) for name in first}
    both, _ = engine.step(film[1], memory)
    np.testing.assert_allclose(both[0], run(engine, film[:2, :1])[-1, 0], atol=1e-4)
    np.testing.assert_allclose(both[1], run(engine, film[1:2, 1:])[-1, 0], atol=1e-4)


def test_clips_are_scored_as_the_network_scores_them(engine, streaming_models):
    import torch

    clips = noise(3, *engine.spec.shape[:2])
    with torch.inference_mode():
        expected = streaming_models[engine.model](torch.from_numpy(clips)).numpy()
    np.testing.assert_allclose(engine(clips), expected, atol=1e-4)
    for on_device in (False, True):
        np.testing.assert_allclose(np.asarray(engine(torch.from_numpy(clips), on_device=on_device)), expected, atol=1e-4)


def test_arrays_of_other_libraries(engine):
    import torch

    film = noise(4, 2)
    expected = run(engine, film)
    memory: Any = None
    for frames, scores in zip(film, expected, strict=True):
        now, memory = engine.step(torch.from_numpy(frames), memory, on_device=True)
        assert all(isinstance(value, DeviceArray) for value in (now, *memory.values()))
        np.testing.assert_allclose(np.asarray(now), scores, atol=1e-6)
    now, memory = engine.step(film[0], memory)  # one step on the host goes on from there
    assert isinstance(now, np.ndarray)
    assert all(isinstance(value, np.ndarray) for value in memory.values())


def test_frames_that_are_not_scored_are_in_the_segments(streaming_bundles, videos):
    """Of m = 3 frames a segment, the two before a scored one, whether they were scored or not; before the first, copies of it."""
    frames = list(all_frames(videos[1]))[:12]
    engine = flowless.load(streaming_bundles["pan-lite-r18"], "openvino")
    film = resize_and_crop(np.stack(frames), engine.spec)
    online, scores = Online(engine), np.empty(0)
    for ordinal, frame in enumerate(frames):
        if ordinal % 3:
            online.skip(frame)
        else:
            scores = online.push(frame)
    clip = np.stack([film[np.maximum([place - 2, place - 1, place], 0)] for place in (0, 3, 6, 9)])
    np.testing.assert_allclose(scores, engine(clip[None])[0], atol=1e-5)
    assert online.frames == 4
    without = Online(engine)
    others = [without.push(frame) for frame in frames[::3]]
    assert np.abs(others[-1] - scores).max() > 0.01
    single = Online(flowless.load(streaming_bundles["tsm-r18"], "openvino"))
    single.skip("not even read")  # type: ignore[arg-type]


def test_mistakes_are_reported(engine):
    frame = noise(1)
    scores, memory = engine.step(frame)
    first = next(iter(memory))
    kind = memory[first].dtype
    for wrong, says in (
        (noise(1, N - 1), "the memory is ndarray; a streaming engine takes the dictionary that step returned"),
        ({}, "the memory's names are none, and .* is missing or unknown"),
        ({**memory, "other": frame}, "'other' is missing or unknown; this engine takes"),
        ({name: value for name, value in memory.items() if name != "started"}, "'started' is missing"),
        ({**memory, "started": np.ones((1, 2))}, "the memory's started is float64; it must be float32"),
        ({**memory, "features": None}, "the memory's features is NoneType; it must be float32"),
        ({**memory, first: memory[first][:, :1, ..., :1]}, f"the memory's {first} is {kind} .*; this engine takes {kind}"),
        ({name: np.repeat(value, 2, axis=0) for name, value in memory.items()}, "the same for frame and memory"),
    ):
        with pytest.raises(FlowlessError, match=says):
            engine.step(frame, wrong)
    with pytest.raises(FlowlessError, match=r"the frame is uint8 \[1, 40, 44\]"):
        engine.step(frame[..., 0], memory)
    np.testing.assert_array_equal(engine.step(frame)[0], scores)


def test_a_graph_of_another_state(streaming_bundles):
    manifest = read_manifest(streaming_bundles["tsm-r18"])
    artefact = manifest.artefact("openvino", "fp32")
    assert artefact is not None
    path = manifest.path_of(artefact.files[0])
    with pytest.raises(
        FlowlessError, match=rf"{path}: its inputs are features, frame, .* and the bundle's manifest has features, frame, s"
    ):
        open_backend(artefact, path, classes=4, state=manifest.state[1:])


class StreamingContext(SimulatedContext):
    """An execution context whose graph adds to each part of the state, and weighs frame and state."""

    def __init__(self, gpu: SimulatedGpu, backend_state: Any, *, classes: int) -> None:
        super().__init__(gpu, classes=classes)
        self.state = backend_state

    def execute_async_v3(self, stream: int) -> bool:
        number, shapes, addresses = self.begun, dict(self.shapes), dict(self.addresses)
        self.begun += 1

        def work() -> None:
            assert self.ended == number, "two runs have the scratch memory at once, or in the wrong order"
            self.ended += 1
            feeds = {"frame": at(addresses["frame"], shapes["frame"], np.uint8)}
            feeds |= {tensor.name: at(addresses[tensor.name], shapes[tensor.name], tensor.dtype) for tensor in self.state}
            for name, value in computed(feeds, self.classes).items():
                at(addresses[name], value.shape, value.dtype)[:] = value

        self.gpu.give(stream, work)
        return True


def computed(feeds: dict[str, np.ndarray], classes: int) -> dict[str, np.ndarray]:
    """Return the outputs of the simulated graph: what it keeps depends on the frame and on what it kept."""
    batch = len(feeds["frame"])
    mean = feeds["frame"].reshape(batch, -1).mean(1)
    total = mean + sum(value.reshape(batch, -1).astype(np.float64).mean(1) for value in feeds.values())
    following = {
        NEXT + name: (value + total.reshape(-1, *[1] * (value.ndim - 1))).astype(value.dtype)
        for name, value in feeds.items()
        if name != "frame"
    }
    return {"scores": (total[:, None] * np.arange(1, classes + 1)).astype(np.float32), **following}


class _NoErrors:
    def __enter__(self) -> str:
        return ""

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("with_stream", [False, True])
def test_steps_on_a_simulated_gpu(
    streaming_bundles: dict[str, Path], film_bundles: dict[str, Path], with_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's backend with the driver simulated: state, clips and batches above the engine's largest, as on the host."""
    gc.collect()
    driver = SimulatedGpu()
    monkeypatch.setattr(cuda_driver, "_library", lambda: driver)
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (8, 9))
    manifest = read_manifest(streaming_bundles["pan-lite-r18"])
    names = [tensor.name for tensor in manifest.state]
    graph, context = object.__new__(TensorRt), StreamingContext(driver, manifest.state, classes=4)
    process = SimpleNamespace(errors=_NoErrors)
    about = {"_process": process, "_context": context, "_classes": 4, "_in_flight": [], "_largest_batch": 2, "fallback": None}
    graph.__dict__.update(about, gpu=cuda_driver.Gpu(), inputs=("frame", *names), outputs=("scores", *(NEXT + name for name in names)))
    backend = StreamingBackend(graph, classes=4, state=manifest.state, path=Path("model.engine"))
    engine = Engine(backend, manifest=manifest, target="tensorrt", precision="fp32", why="")
    on_host = StreamingBackend(
        SimpleNamespace(inputs=graph.inputs, run=lambda feeds: computed(dict(feeds), 4), device="CPU", fallback=None),  # type: ignore[arg-type]
        classes=4,
        state=manifest.state,
        path=Path("model.engine"),
    )
    stream = driver.new_stream() if with_stream else None
    film, expected, right = noise(3, 5), zero_state(manifest.state, 5), np.empty(0)
    scores: Any = None
    memory: Any = None
    for frames in film:
        scores, memory = engine.step(frames, memory, on_device=True, stream=stream)
        right, expected = on_host.step(frames, expected)
    np.testing.assert_allclose(scores.numpy(), right, rtol=1e-5)
    kept = {name: memory[name].numpy() for name in names}
    for name in names:
        np.testing.assert_allclose(kept[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(engine.step(film[0], kept)[0], on_host.step(film[0], expected)[0], rtol=1e-5)
    clips = noise(3, N, 3, seed=1)
    np.testing.assert_allclose(engine(clips), on_host(clips), rtol=1e-5)
    np.testing.assert_allclose(engine(clips, on_device=True, stream=stream).numpy(), on_host(clips), rtol=1e-5)
    keeping_frames = Engine(
        OnlineBackend(graph, classes=4), manifest=read_manifest(film_bundles["online"]), target="tensorrt", precision="fp32", why=""
    )
    with pytest.raises(
        FlowlessError, match="the memory is None, and the frame lies on the GPU: give the memory as well, the frame 3 times"
    ):
        keeping_frames.step(place(film[0], graph.gpu))

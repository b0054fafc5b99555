"""Clips and scores that lie on a device: without a copy on the CPU, and by address and stream on a simulated GPU."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from simulated_gpu import SimulatedContext, SimulatedGpu, at, weighed

import flowless
from flowless import cuda_driver
from flowless.engines.backends.backend import _ClipBackend
from flowless.engines.backends.tensorrt_backend import TensorRt
from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.device import dlpack
from flowless.engines.device.device_array import DeviceArray, borrow, empty, of_numpy
from flowless.engines.device.dlpack import CUDA, Borrowed
from flowless.engines.engine import Engine
from flowless.errors import FlowlessError

TARGETS = ["openvino", "onnxruntime"]


def random_clips(spec: Any, count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *spec.shape), dtype=np.uint8)


@pytest.fixture(scope="module", params=TARGETS)
def engine(request: pytest.FixtureRequest, built: Path) -> Engine:
    if request.param == "onnxruntime":
        pytest.importorskip("onnxruntime")
    return flowless.load(built, request.param)


def borrowed(value: Any) -> DeviceArray:
    return borrow(value, name="clip", gpu=None, stream=None, runs_on="openvino")


def test_torchs_clips_and_torchs_scores(engine: Engine) -> None:
    """The bytes that the engine reads are the tensor's, and the scores that PyTorch takes are the engine's."""
    torch = pytest.importorskip("torch")
    clips = random_clips(engine.spec)
    tensor = torch.from_numpy(clips)
    expected = engine(clips)
    np.testing.assert_array_equal(engine(tensor), expected)
    scores = engine(tensor, on_device=True)
    assert isinstance(scores, DeviceArray)
    assert borrowed(tensor).address == tensor.data_ptr()
    taken = torch.from_dlpack(scores)
    assert taken.data_ptr() == scores.address
    np.testing.assert_array_equal(taken.numpy(), expected)
    np.testing.assert_array_equal(np.from_dlpack(scores), expected)
    np.testing.assert_array_equal(np.asarray(scores), expected)
    np.testing.assert_array_equal(engine(clips, on_device=True).numpy(), expected)
    assert scores.__dlpack_device__() == (1, 0)
    assert not hasattr(scores, "__cuda_array_interface__")


def test_scores_stay_until_the_last_owner_is_gone(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    clips = random_clips(engine.spec)
    scores = engine(clips[:1], on_device=True)
    kept, owner = scores.numpy().copy(), weakref.ref(scores._owner)
    taken, again = torch.from_dlpack(scores), np.from_dlpack(scores)
    del scores
    engine(clips[1:], on_device=True)
    gc.collect()
    np.testing.assert_array_equal(taken.numpy(), kept)
    del taken
    gc.collect()
    np.testing.assert_array_equal(again, kept)
    del again
    of_numpy(np.zeros(1)).__dlpack__()  # consumed capsules are forgotten when the next one is made
    gc.collect()
    assert owner() is None


def test_a_lender_gets_its_memory_back() -> None:
    torch = pytest.importorskip("torch")
    array = np.zeros((2, 3), np.uint8)
    storage = weakref.ref(array)
    lent = borrowed(torch.from_numpy(array))
    del array
    gc.collect()
    assert storage() is not None
    del lent
    gc.collect()
    assert storage() is None


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 2)])
def test_capsules_of_either_kind(version: tuple[int, int] | None) -> None:
    array = of_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
    capsule = array.__dlpack__(max_version=version)
    assert ("versioned" in repr(capsule)) == (version is not None and version[0] == 1)
    taken = Borrowed(capsule)
    assert (taken.layout.address, taken.layout.shape, taken.layout.dtype) == (array.address, (2, 3), "float32")
    with pytest.raises(BufferError, match="no capsule that can be consumed"):
        Borrowed(capsule)
    with pytest.raises(BufferError, match="without a copy"):
        array.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="without a copy"):
        array.__dlpack__(dl_device=(CUDA, 0))


def test_a_capsule_that_no_one_takes_is_released() -> None:
    array = np.zeros(3)
    owner = weakref.ref(array)
    capsule = of_numpy(array).__dlpack__()
    del array
    of_numpy(np.zeros(1)).__dlpack__()
    assert owner() is not None, "the capsule may still be consumed"
    del capsule
    of_numpy(np.zeros(1)).__dlpack__()
    gc.collect()
    assert owner() is None


def test_an_error_passes_through_code_that_holds_scores() -> None:
    torch = pytest.importorskip("torch")

    def fails() -> None:
        taken = torch.from_dlpack(of_numpy(np.zeros(3)))
        raise ValueError(f"{taken.shape[0]} values")

    with pytest.raises(ValueError, match="3 values"):
        fails()


def test_many_threads_lend_and_borrow() -> None:
    before = len(dlpack._lent)

    def lend() -> None:
        for number in range(200):
            array = of_numpy(np.full(5, number, np.int32))
            assert np.from_dlpack(array).tolist() == [number] * 5

    threads = [threading.Thread(target=lend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(dlpack._lent) <= before + 1


def test_a_process_ends_while_scores_are_held() -> None:
    pytest.importorskip("torch")
    code = (
        "import numpy, torch; from flowless.engines.device.device_array import of_numpy\n"
        "kept = torch.from_dlpack(of_numpy(numpy.ones(4))); torch.kept = kept; print(kept.sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4.0\n", "")


class OnAGpu:
    """An array of a library that holds it on a device of this kind, with DLPack or with the CUDA array interface."""

    def __init__(self, device: tuple[int, int], *, dlpack: bool = True) -> None:
        if dlpack:
            self.__dlpack_device__ = lambda: device
            self.__dlpack__ = lambda **_: pytest.fail("it must not be asked for")
        else:
            self.__cuda_array_interface__ = {"shape": (1,), "typestr": "|u1", "data": (8, False), "version": 3}


@pytest.mark.parametrize(
    ("clip", "says"),
    [
        (OnAGpu((2, 1)), "the clip lies on GPU 1, and .* runs on the CPU; nothing is copied implicitly.*copy the clip to the CPU first"),
        (OnAGpu((13, 0)), "the clip lies on GPU 0"),
        (OnAGpu((2, 0), dlpack=False), "the clip lies on GPU 0"),
        (OnAGpu((4, 0)), "a device of DLPack's type 4"),
    ],
)
def test_a_clip_that_lies_elsewhere(engine: Engine, clip: Any, says: str) -> None:
    with pytest.raises(FlowlessError, match=says):
        engine(clip)


def test_tensors_that_an_engine_does_not_take(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    clip = torch.zeros((2, *engine.spec.shape), dtype=torch.uint8)
    for wrong, says in (
        (clip.float(), "the clip is float32; an engine takes uint8"),
        (clip.bfloat16(), "the clip is bfloat16; an engine takes uint8"),
        (clip.transpose(3, 4), "the clip is not C-contiguous; .*contiguous()"),
        (clip[::2].expand(4, *engine.spec.shape), "the clip is not C-contiguous"),
        (clip[0], r"the clip has shape \[4, 3, 48, 49, 3\]"),
        (clip[:0], "B of at least 1"),
        (clip.float().requires_grad_(), "the clip is a Tensor that its library does not hand out: .*gradient"),
    ):
        with pytest.raises(FlowlessError, match=says):
            engine(wrong)
    assert engine(clip[1:]).shape == (1, 6)


@pytest.mark.parametrize(("stream", "says"), [(7, "stream is 0x7, and this engine runs on the CPU"), (-1, "stream is -1"), ("a", "'a'")])
def test_streams_that_there_are_not(engine: Engine, stream: Any, says: str) -> None:
    with pytest.raises(FlowlessError, match=says):
        engine(random_clips(engine.spec), stream=stream)


@pytest.mark.parametrize("target", TARGETS)
def test_steps_of_an_online_graph(target: str, film_bundles: dict[str, Path]) -> None:
    torch = pytest.importorskip("torch")
    engine = flowless.load(film_bundles["online"], target)
    clips = random_clips(engine.spec)
    frame, memory = np.ascontiguousarray(clips[:, -1, 0]), np.ascontiguousarray(clips[:, :-1, 0])
    expected, following = engine.step(frame, memory)
    for on_device in (False, True):
        scores, after = engine.step(torch.from_numpy(frame), torch.from_numpy(memory), on_device=on_device)
        assert isinstance(after, DeviceArray) == on_device
        np.testing.assert_allclose(np.asarray(scores), expected, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(after), following)
    scores, _ = engine.step(torch.from_numpy(frame), after)  # a memory that the engine returned
    assert scores.shape == expected.shape
    np.testing.assert_allclose(engine(torch.from_numpy(clips)), expected, atol=1e-6)
    with pytest.raises(FlowlessError, match="the memory is uint8"):
        engine.step(torch.from_numpy(frame), torch.from_numpy(memory[:1]))


def test_steps_of_an_offline_graph_are_numpys(film_bundles: dict[str, Path]) -> None:
    torch = pytest.importorskip("torch")
    engine = flowless.load(film_bundles["offline"], "openvino")
    clips = random_clips(engine.spec)
    with pytest.raises(FlowlessError, match="flowless export --online"):
        engine.step(torch.from_numpy(clips[:, -1, 0]).contiguous(), torch.from_numpy(clips[:, :-1, 0]).contiguous())


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    gc.collect()  # what an earlier test left is freed with its own driver
    made = SimulatedGpu()
    monkeypatch.setattr(cuda_driver, "_library", lambda: made)
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (8, 9))
    return made


@pytest.fixture
def on_gpu(driver: SimulatedGpu, built: Path) -> tuple[Engine, SimulatedContext]:
    """An engine of TensorRT's backend whose execution context is simulated."""
    context = SimulatedContext(driver, classes=6)
    graph = object.__new__(TensorRt)
    process = SimpleNamespace(errors=_NoErrors)
    graph.__dict__.update(
        gpu=cuda_driver.Gpu(), _process=process, _context=context, _classes=6, _in_flight=[], _largest_batch=2, fallback=None
    )
    graph.inputs, graph.outputs = ("clip",), ("scores",)
    manifest = read_manifest(built)
    return Engine(_ClipBackend(graph, classes=6), manifest=manifest, target="tensorrt", precision="fp32", why=""), context


class _NoErrors:
    def __enter__(self) -> _NoErrors:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Foreign:
    """A library's clip on the GPU, which its stream has yet to compute."""

    def __init__(self, driver: SimulatedGpu, values: np.ndarray, *, number: int = 0) -> None:
        self.driver, self.number, self.stream = driver, number, driver.new_stream()
        self.gpu = cuda_driver.Gpu()
        self.array = empty(values.shape, values.dtype, self.gpu)
        at(self.array.address, values.shape, values.dtype)[:] = 0
        driver.give(self.stream, lambda: at(self.array.address, values.shape, values.dtype).__setitem__(slice(None), values))


class ByDlpack(Foreign):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (CUDA, self.number)

    def __dlpack__(self, *, stream: int, **options: Any) -> Any:
        assert stream > 0
        with self.gpu.entered():
            self.gpu.record(self.stream).wait_in(stream)
        return self.array.__dlpack__(stream=-1, **options)


class ByInterface(Foreign):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__cuda_array_interface__, "stream": self.stream}


@pytest.mark.parametrize("library", [ByDlpack, ByInterface])
@pytest.mark.parametrize("with_stream", [False, True])
def test_a_clip_on_the_gpu_is_read_when_it_is_ready(library: Any, with_stream: bool, driver: SimulatedGpu, on_gpu: Any) -> None:
    engine, context = on_gpu
    clips = random_clips(engine.spec, 5)  # three batches of the engine's largest, 2
    stream = driver.new_stream() if with_stream else None
    clip = library(driver, clips)
    scores = engine(clip, on_device=True, stream=stream)
    assert context.ended == (0 if with_stream else 3), "with a stream the host must not wait"
    assert set(context.streams) == ({stream} if with_stream else {engine._backend.gpu.stream})
    assert (scores.shape, scores.__dlpack_device__()) == ((5, 6), (CUDA, 0))
    del clip  # the engine keeps what it has yet to read
    np.testing.assert_allclose(scores.numpy(), weighed(clips, 6), rtol=1e-6)
    assert context.ended == 3


def test_a_consumers_stream_waits_for_the_scores(driver: SimulatedGpu, on_gpu: Any) -> None:
    engine, context = on_gpu
    clips = random_clips(engine.spec, 2)
    scores = engine(clips, on_device=True, stream=driver.new_stream())
    consumer, found = driver.new_stream(), []
    taken = Borrowed(scores.__dlpack__(stream=consumer))
    driver.give(consumer, lambda: found.append(at(taken.layout.address, (2, 6), np.float32).copy()))
    assert context.ended == 0
    driver.finish(consumer)
    np.testing.assert_allclose(found[0], weighed(clips, 6), rtol=1e-6)
    assert scores.__cuda_array_interface__["stream"] == context.streams[0]
    with pytest.raises(FlowlessError, match="not copied implicitly"):
        np.asarray(scores)


def test_calls_on_several_streams_take_turns(driver: SimulatedGpu, on_gpu: Any) -> None:
    """One execution context has one scratch memory: the second stream waits for the first, and so does a clip of NumPy's."""
    engine, _ = on_gpu
    clips = random_clips(engine.spec, 6)
    first = engine(clips[:2], on_device=True, stream=driver.new_stream())
    second = engine(clips[2:4], on_device=True, stream=driver.new_stream())
    np.testing.assert_allclose(second.numpy(), weighed(clips[2:4], 6), rtol=1e-6)
    third = engine(clips[2:4], on_device=True, stream=driver.new_stream())
    np.testing.assert_allclose(engine(clips[4:]), weighed(clips[4:], 6), rtol=1e-6)
    np.testing.assert_allclose(first.numpy(), weighed(clips[:2], 6), rtol=1e-6)
    np.testing.assert_allclose(third.numpy(), weighed(clips[2:4], 6), rtol=1e-6)


def test_scores_come_to_the_host_when_asked(driver: SimulatedGpu, on_gpu: Any) -> None:
    engine, _ = on_gpu
    clips = random_clips(engine.spec, 3)
    found = engine(ByDlpack(driver, clips), stream=driver.new_stream())
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, weighed(clips, 6), rtol=1e-6)
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(engine(torch.from_numpy(clips)), weighed(clips, 6), rtol=1e-6)


def test_a_clip_on_another_gpu(driver: SimulatedGpu, on_gpu: Any) -> None:
    with pytest.raises(FlowlessError, match="lies on GPU 3, and tensorrt runs on GPU 0; copy it there first"):
        on_gpu[0](ByDlpack(driver, random_clips(on_gpu[0].spec), number=3))


def test_nothing_is_left_on_the_gpu(driver: SimulatedGpu, on_gpu: Any) -> None:
    engine, context = on_gpu
    clips = random_clips(engine.spec, 4)
    engine(clips, on_device=True)
    engine(ByDlpack(driver, clips), on_device=True, stream=driver.new_stream())
    of_numpy(np.zeros(1)).__dlpack__()  # consumed capsules are forgotten when the next one is made
    engine._backend = None
    gc.collect()
    assert context.ended == context.begun == 4
    assert (driver.memory, driver.events, driver.retained, driver.contexts) == ({}, {}, 0, [])

"""Opening an artefact with the library of its target: uint8 clips in, float32 scores out; of other graphs, frames as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from flowless import cuda_driver
from flowless.engines.backends.onnxruntime_backend import OnnxRuntime
from flowless.engines.backends.openvino_backend import OpenVino
from flowless.engines.backends.openvino_core import openvino_reason
from flowless.engines.bundle import compatibility
from flowless.engines.bundle.manifest import Artefact
from flowless.engines.device.device_array import DeviceArray, empty
from flowless.engines.streaming.memory import MEMORY, Graph, OnlineBackend, feeds_of
from flowless.engines.streaming.state import StateTensor
from flowless.engines.streaming.streaming_backend import StreamingBackend
from flowless.engines.targets import find_target
from flowless.errors import FlowlessError, first_line
from flowless.interrupts import raise_lost_ctrl_c


class Backend(Protocol):
    """An opened artefact."""

    device: str
    """Where it runs: `CPU` or `GPU`."""

    @property
    def fallback(self) -> str | None:
        """Why it does not run on the GPU of this machine; None where it does, where there is no GPU, or where the library uses none."""
        ...

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Return float32 scores `[B, classes]` of uint8 clips `[B, N, m, H, W, 3]`, C-contiguous."""
        ...


class DeviceBackend(Backend, Protocol):
    """A backend that takes clips where it runs, and leaves the scores there."""

    @property
    def gpu(self) -> cuda_driver.Gpu | None:
        """The GPU whose memory `on_device` takes; None where it runs on the CPU."""
        ...

    def on_device(self, clip: DeviceArray, stream: int | None) -> DeviceArray:
        """Return the scores where it runs, of clips that lie there, in the order of a CUDA stream (None: its own, and complete)."""
        ...


def why_not(target: str, artefact: Artefact | None = None) -> str | None:
    """Return in one line why this machine cannot run a target (or this artefact of it); None where it can."""
    library = find_target(target)
    if missing := library.why_missing():
        return missing
    if not library.gpu_to_run:
        return None
    capability = cuda_driver.compute_capability()
    if capability is None:
        return "there is no NVIDIA GPU here"
    try:
        here = compatibility.what_is_here(library.module, capability)
    except (ImportError, OSError) as error:  # installed, but a shared library that it needs is not
        return f"{library.module} cannot be imported ({first_line(error)})"
    return compatibility.unknown_gpu(here) if artefact is None else compatibility.mismatch(artefact, here)


def open_backend(
    artefact: Artefact,
    path: Path,
    *,
    classes: int,
    state: Sequence[StateTensor] = (),
    threads: int | None = None,
    hint: str | None = None,
    cuda_graph: bool = False,
) -> DeviceBackend:
    """Open an artefact.

    Args:
        artefact: Its record in the manifest.
        path: Its first file.
        classes: Scores per clip.
        state: The manifest's state, of a streaming graph.
        threads: CPU threads; None lets the library choose.
        hint: OpenVINO only: precision to compute in, `f32` (the default), `bf16` or `f16`.
        cuda_graph: TensorRT-RTX only: capture and replay a CUDA graph.

    Raises:
        FlowlessError: The library refuses the file, or its graph has other inputs than a streaming graph of this state.
    """
    try:
        with raise_lost_ctrl_c():  # a library may report an interrupt as an error of its own
            graph = _open_graph(artefact, path, classes=classes, threads=threads, hint=hint, cuda_graph=cuda_graph)
        if state:
            return StreamingBackend(graph, classes=classes, state=state, path=path)
        return (OnlineBackend if MEMORY in graph.inputs else _ClipBackend)(graph, classes=classes)
    except FlowlessError:
        raise
    except Exception as error:  # the libraries' own exception types, among them plain RuntimeError
        reason = openvino_reason(error) if artefact.target == "openvino" else first_line(error)
        raise FlowlessError(f"{path}: {artefact.target} cannot load it ({reason}); {compatibility.rebuild(artefact)}.") from error


def _open_graph(artefact: Artefact, path: Path, *, classes: int, threads: int | None, hint: str | None, cuda_graph: bool) -> Graph:
    if artefact.target == "openvino":
        return OpenVino(path, threads=threads, hint=hint or artefact.options.get("hint"))
    if artefact.target == "onnxruntime":
        return OnnxRuntime(path, threads=threads)
    from flowless.engines.backends.tensorrt_backend import TensorRt

    return TensorRt(path, artefact=artefact, classes=classes, cuda_graph=cuda_graph)


class _ClipBackend:
    """A backend over a graph with one input, the clip, and one output."""

    def __init__(self, graph: Graph, *, classes: int) -> None:
        self._graph, self._classes = graph, classes
        self.device, self.fallback = graph.device, graph.fallback

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        (scores,) = self._graph.run(feeds_of(clip, self._graph.inputs)).values()
        return scores.astype(np.float32, copy=False)

    def on_device(self, clip: DeviceArray, stream: int | None) -> DeviceArray:
        scores = empty((len(clip), self._classes), np.float32, self.gpu)
        self._graph.run_on_device({self._graph.inputs[0]: clip}, {self._graph.outputs[0]: scores}, stream)
        return scores

    @property
    def gpu(self) -> cuda_driver.Gpu | None:
        return self._graph.gpu

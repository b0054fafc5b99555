"""Engines that TensorRT and TensorRT-RTX run on the GPU; they share one Python API. Device memory is managed by `cuda_driver`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from flowless import cuda_driver
from flowless.engines.backends.tensorrt_process import PLUGIN, ErrorMessages, TensorRtProcess, tensorrt_process
from flowless.engines.bundle.compatibility import rebuild
from flowless.engines.bundle.manifest import Artefact
from flowless.engines.device.device_array import DeviceArray
from flowless.engines.streaming.state import NEXT
from flowless.errors import FlowlessError

#: Environment variable that names the library of the PA op's plugin, for an engine that was built with it.
PLUGIN_VARIABLE = "FLOWLESS_PA_PLUGIN"


class TensorRt:
    """An engine of TensorRT or TensorRT-RTX on the first GPU, with a runtime, an execution context and a CUDA stream of its own."""

    device = "GPU"
    fallback = None

    def __init__(self, path: Path, *, artefact: Artefact, classes: int, cuda_graph: bool = False) -> None:
        """Open an engine.

        Args:
            path: Its file, one folder below the bundle's.
            artefact: Its record in the manifest.
            classes: Scores per clip.
            cuda_graph: TensorRT-RTX only: let it capture its work as a CUDA graph and replay that.

        Raises:
            FlowlessError: There is no GPU, or this library cannot read the engine on it.
        """
        self._process = process = tensorrt_process(artefact.target)
        self.gpu = cuda_driver.Gpu()
        if artefact.options.get("pa") == "plugin":
            load_plugin_of(process, artefact, path.parent)
        with self.gpu.entered(), process.errors() as errors:
            # The runtime must outlive the engine, and the engine the context: TensorRT counts no references.
            self._runtime: Any = process.trt.Runtime(process.logger)
            self._engine: Any = open_engine(process, self._runtime, path, artefact=artefact)
            self._context: Any = create_context(process, self._engine, cuda_graph=cuda_graph)
            if self._context is None:
                raise FlowlessError(f"{path}: the GPU cannot take this engine ({errors}). Free memory on it, or {rebuild(artefact)}.")
        self._classes = classes
        self._in_flight: list[tuple[cuda_driver.Event, object]] = []
        mode = process.trt.TensorIOMode.INPUT
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.inputs = tuple(name for name in names if self._engine.get_tensor_mode(name) == mode)
        self.outputs = tuple(name for name in names if name not in self.inputs)
        self._largest_batch = int(self._engine.get_tensor_profile_shape(self.inputs[0], 0)[2][0])

    def __del__(self) -> None:
        # In this order, and with the GPU's context current: it frees the engine's device memory.
        with suppress(Exception), self.gpu.entered():
            for event, _ in self._in_flight:
                event.wait()
            self._context = self._engine = self._runtime = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return float32 scores `[B, classes]`, and of an online or streaming graph the next memory, of C-contiguous inputs by name."""
        starts = range(0, len(next(iter(feeds.values()))), self._largest_batch)
        with self.gpu.entered():
            parts = [self._run({name: value[start : start + self._largest_batch] for name, value in feeds.items()}) for start in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def run_on_device(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int | None) -> None:
        """Compute outputs into arrays on the GPU; with a stream the host does not wait, and the arrays know when they are ready."""
        on, batch = self.gpu.stream if stream is None else stream, len(next(iter(inputs.values())))
        with self.gpu.entered():
            for start in range(0, batch, self._largest_batch):
                end = start + self._largest_batch
                parts = [{name: array.rows(start, end) for name, array in some.items()} for some in (inputs, outputs)]
                sources, results = ({name: part.address for name, part in some.items()} for some in parts)
                self._enqueue(sources, results, {name: part.shape for name, part in parts[0].items()}, stream=on)
            event = self.gpu.record(on)
            for array in outputs.values():
                array.ready_after(event)
            # The inputs' memory must stay until they are read.
            self._in_flight = [(other, held) for other, held in self._in_flight if not other.reached]
            if stream is None:
                self.gpu.synchronize()
            else:
                self._in_flight.append((event, inputs))

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sources = {name: self.gpu.buffer(name, value.nbytes) for name, value in feeds.items()}
        results = {name: self._empty_output(name, feeds) for name in self.outputs}
        targets = {name: self.gpu.buffer(name, result.nbytes) for name, result in results.items()}
        for name, value in feeds.items():
            self.gpu.upload(sources[name], value)
        self._enqueue(sources, targets, {name: value.shape for name, value in feeds.items()}, stream=self.gpu.stream)
        for name, result in results.items():
            self.gpu.download(result, targets[name])
        return results

    def _enqueue(self, sources: dict[str, int], targets: dict[str, int], shapes: dict[str, tuple[int, ...]], *, stream: int) -> None:
        """Give one batch to a stream, by the addresses of inputs and outputs."""
        for event, _ in self._in_flight:
            event.wait_in(stream)  # the context has one set of scratch memory
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise FlowlessError(
                    f"The engine refuses a {name} of shape {shape}. Build it with a profile that allows it: --batch MIN OPT MAX."
                )
        for name, address in (sources | targets).items():
            self._context.set_tensor_address(name, address)
        with self._process.errors() as errors:
            if not self._context.execute_async_v3(stream):
                raise FlowlessError(f"TensorRT could not run the engine: {errors}.")

    def _empty_output(self, name: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
        if name.startswith(NEXT):  # the next memory, or a part of the next state
            return np.empty_like(feeds[name.removeprefix(NEXT)])
        return np.empty((len(next(iter(feeds.values()))), self._classes), np.float32)


def create_context(process: TensorRtProcess, engine: Any, *, cuda_graph: bool) -> Any:
    """Return an engine's execution context, None where the GPU cannot take it.

    With `cuda_graph` TensorRT-RTX captures CUDA graphs itself, one for each shape, once the kernels for that shape are compiled
    (`IRuntimeConfig`). TensorRT has no such setting: a captured graph needs an execution context of its own.
    """
    if not cuda_graph:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = process.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config)


def open_engine(process: TensorRtProcess, runtime: Any, path: Path, *, artefact: Artefact) -> Any:
    """Return the engine of a file, with its weights put back where it was built without.

    Args:
        process: The library's state in this process.
        runtime: A runtime of the library, which must outlive the engine.
        path: The file, one folder below the bundle's.
        artefact: Its record in the manifest.

    Raises:
        FlowlessError: This library cannot read the engine here; the message says how to build it again.
    """
    if artefact.target == "tensorrt" and artefact.options.get("portable"):
        # A portable engine contains the runtime of the version that built it, which is code. The bundle's fingerprints have shown that
        # it is the file that was built; TensorRT reads it only with this permission.
        runtime.engine_host_code_allowed = True
    plan = path.read_bytes()
    with process.errors() as errors:
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            errors.texts[:0] = _invalid(process.trt, runtime, plan)
            raise FlowlessError(f"{path}: {process.name} cannot read this engine here ({errors}); {rebuild(artefact)}.")
        if artefact.options.get("stripped"):
            _refit(process, engine, path, artefact, errors)
    return engine


def _invalid(trt: Any, runtime: Any, plan: bytes) -> list[str]:
    """Return why TensorRT-RTX finds an engine invalid, from the engine's header; TensorRT has no such function."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    _, diagnostics = runtime.get_engine_validity(plan)
    names = trt.EngineInvalidityDiagnostics.__members__.items()
    return [name.lower().replace("_", " ") for name, value in names if int(diagnostics) & int(value)]


def weights_file(path: Path, artefact: Artefact) -> Path:
    """Return the graph in the bundle that an engine without weights takes them from.

    Args:
        path: The engine's file, one folder below the bundle's.
        artefact: Its record in the manifest.

    Raises:
        FlowlessError: The record names no file in the bundle.
    """
    name = artefact.options.get("refit_from")
    bundle = path.parent.parent
    graph = path.parent / str(name)
    if not name or not graph.resolve().is_relative_to(bundle.resolve()) or not graph.is_file():
        raise FlowlessError(
            f"{path}: this engine has no weights of its own, and the graph {name!r} that has them is not in the bundle. "
            f"Copy the bundle again, whole, or {rebuild(artefact)}."
        )
    return graph


def _refit(process: TensorRtProcess, engine: Any, path: Path, artefact: Artefact, errors: ErrorMessages) -> None:
    graph = weights_file(path, artefact)
    refitter = process.trt.Refitter(engine, process.logger)
    parser = process.trt.OnnxParserRefitter(refitter, process.logger)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        errors.texts[:0] = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise FlowlessError(f"{path}: its weights could not be taken from {graph} ({errors}); {rebuild(artefact)}.")


def load_plugin_of(process: TensorRtProcess, artefact: Artefact, folder: Path) -> None:
    """Register the PA op's plugin from the library that FLOWLESS_PA_PLUGIN names, or from the one in an engine's folder.

    Raises:
        FlowlessError: Neither is there, or TensorRT does not register the plugin from it.
    """
    if process.plugin_kind() is not None:
        return
    beside = next((folder / Path(name).name for name in artefact.files if name.endswith((".so", ".dll"))), None)
    library = os.environ.get(PLUGIN_VARIABLE) or (str(beside) if beside else "")
    if not library or not Path(library).is_file() or process.load_plugin(library) is None:
        state = f"is {library!r}, which TensorRT does not load" if library else "is not set"
        raise FlowlessError(
            f"This engine computes PA with the plugin {PLUGIN[2]}::{PLUGIN[0]}, whose library is not loaded: {PLUGIN_VARIABLE} {state}. "
            f"Set it to the library's path, or, without --pa plugin, {rebuild(artefact)}."
        )

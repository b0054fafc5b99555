"""TensorRT and TensorRT-RTX, which share one Python API; device memory through the driver alone."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowless import cuda_driver
from flowless.engines.bundle.compatibility import rebuild
from flowless.engines.bundle.manifest import Artefact
from flowless.engines.streaming.memory import MEMORY, NEXT_MEMORY
from flowless.errors import FlowlessError

#: Names the library of the PA op's plugin, for an engine that was built with it.
PLUGIN_VARIABLE = "FLOWLESS_PA_PLUGIN"
#: Name, version and namespace of the plugin, as the graph's nodes ask for it.
_PLUGIN = ("PersistenceOfAppearance", "1", "flowless")


class TensorRt:
    """An engine of TensorRT or TensorRT-RTX on the first GPU."""

    device = "GPU"
    fallback = None

    def __init__(self, path: Path, *, artefact: Artefact, module: str, classes: int) -> None:
        """Open an engine.

        Args:
            path: Its file, one folder below the bundle's.
            artefact: What the manifest says about it.
            module: `tensorrt` or `tensorrt_rtx`.
            classes: Scores per clip.

        Raises:
            FlowlessError: There is no GPU, or this library cannot read the engine on it.
        """
        trt = importlib.import_module(module)
        self._gpu = cuda_driver.Gpu()
        self._listener = listener_of(trt)
        if artefact.options.get("pa") == "plugin":
            _load_plugin(trt, artefact, path.parent)
        # The runtime, and the engine after it, must outlive the context: TensorRT counts no references.
        self._listener.said.clear()
        self._runtime = trt.Runtime(self._listener)
        self._engine = open_engine(trt, self._runtime, path, artefact=artefact, said=self._listener.said)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise FlowlessError(f"{path}: the GPU cannot take this engine ({self._reasons()}). Free memory on it, or {rebuild(artefact)}.")
        self._classes = classes
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.inputs = tuple(name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        self._outputs = tuple(name for name in names if name not in self.inputs)
        self._most = int(self._engine.get_tensor_profile_shape(self.inputs[0], 0)[2][0])

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return float32 scores `[B, classes]`, and of an online graph the next memory, of C-contiguous uint8 inputs by name."""
        self._gpu.enter()
        starts = range(0, len(next(iter(feeds.values()))), self._most)
        parts = [self._run({name: value[start : start + self._most] for name, value in feeds.items()}) for start in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._listener.said.clear()
        for name, value in feeds.items():
            source = self._gpu.buffer(name, value.nbytes)
            if not self._context.set_input_shape(name, value.shape):
                raise FlowlessError(
                    f"The engine refuses a {name} of shape {value.shape}. Build it with a profile that allows it: --batch MIN OPT MAX."
                )
            self._context.set_tensor_address(name, source)
            self._gpu.upload(source, value)
        answers = {name: self._answer(name, feeds) for name in self._outputs}
        for name, answer in answers.items():
            self._context.set_tensor_address(name, self._gpu.buffer(name, answer.nbytes))
        if not self._context.execute_async_v3(self._gpu.stream):
            raise FlowlessError(f"TensorRT could not run the engine: {self._reasons()}.")
        for name, answer in answers.items():
            self._gpu.download(answer, self._gpu.buffer(name, answer.nbytes))
        return answers

    def _answer(self, name: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """Return an array for an output to be copied into."""
        if name == NEXT_MEMORY:
            return np.empty_like(feeds[MEMORY])
        return np.empty((len(next(iter(feeds.values()))), self._classes), np.float32)

    def _reasons(self) -> str:
        return "; ".join(dict.fromkeys(self._listener.said)) or "it says no more"


@functools.cache
def listener_of(trt: Any) -> Any:
    """Return the logger of `tensorrt` or `tensorrt_rtx`, which prints nothing and keeps errors in its list `said`.

    There is one for the life of the process: TensorRT keeps a bare pointer to the first that it is given.
    """

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self.said.append(" ".join(text.split()))

    return Listener()


def open_engine(trt: Any, runtime: Any, path: Path, *, artefact: Artefact, said: list[str]) -> Any:
    """Return the engine of a file, its weights put back where it was built without.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        runtime: Its runtime, which must outlive the engine.
        path: The file, one folder below the bundle's.
        artefact: What the manifest says about it.
        said: Where the runtime's logger keeps errors.

    Raises:
        FlowlessError: This library cannot read the engine here; the message says how to build it again.
    """
    if artefact.target == "tensorrt" and artefact.options.get("portable"):
        # A portable engine brings the runtime of the version that built it, which is code. The bundle's fingerprints say that
        # it is the file that was built; without this TensorRT does not read it.
        runtime.engine_host_code_allowed = True
    plan = path.read_bytes()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reasons = "; ".join(dict.fromkeys([*_invalid(trt, runtime, plan), *said])) or "it says no more"
        raise FlowlessError(f"{path}: {artefact.target} {trt.__version__} cannot read this engine here ({reasons}); {rebuild(artefact)}.")
    if artefact.options.get("stripped"):
        _refit(trt, runtime, engine, path, artefact, said)
    return engine


def _invalid(trt: Any, runtime: Any, plan: bytes) -> list[str]:
    """Return why TensorRT-RTX finds an engine invalid, from its header alone; TensorRT has no such question."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    _, diagnostics = runtime.get_engine_validity(plan)
    names = trt.EngineInvalidityDiagnostics.__members__.items()
    return [name.lower().replace("_", " ") for name, value in names if int(diagnostics) & int(value)]


def _refit(trt: Any, runtime: Any, engine: Any, path: Path, artefact: Artefact, said: list[str]) -> None:
    name = artefact.options.get("refit_from")
    bundle = path.parent.parent
    graph = path.parent / str(name)
    if not name or not graph.resolve().is_relative_to(bundle.resolve()) or not graph.is_file():
        raise FlowlessError(
            f"{path}: this engine has no weights of its own, and the graph {name!r} that has them is not in the bundle. "
            f"Copy the bundle again, whole, or {rebuild(artefact)}."
        )
    refitter = trt.Refitter(engine, runtime.logger)
    parser = trt.OnnxParserRefitter(refitter, runtime.logger)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        told = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        reasons = "; ".join(dict.fromkeys([*told, *said])) or "it says no more"
        raise FlowlessError(f"{path}: its weights could not be taken from {graph} ({reasons}); {rebuild(artefact)}.")


def _load_plugin(trt: Any, artefact: Artefact, folder: Path) -> None:
    """Load the library beside the engine, or the one that the variable names."""
    registry = trt.get_plugin_registry()
    if _registered(registry):
        return
    beside = next((folder / Path(name).name for name in artefact.files if name.endswith((".so", ".dll"))), None)
    library = os.environ.get(PLUGIN_VARIABLE) or (str(beside) if beside else "")
    if library and Path(library).is_file():
        registry.load_library(str(Path(library).absolute()))
    if not _registered(registry):
        what = f"is {library!r}, which TensorRT does not load" if library else "is not set"
        raise FlowlessError(
            f"This engine computes PA with the plugin {_PLUGIN[2]}::{_PLUGIN[0]}, whose library is not loaded: {PLUGIN_VARIABLE} {what}. "
            f"Set it to the library's path, or, without --pa plugin, {rebuild(artefact)}."
        )


def _registered(registry: Any) -> bool:
    return any((item.name, item.plugin_version, item.plugin_namespace) == _PLUGIN for item in registry.all_creators)

"""The libraries that run an artefact. Each backend takes uint8 clips and gives float32 scores; of an online graph, frames too."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flowless import cuda_driver
from flowless.engines.backends.openvino_core import computes_in, one_at_a_time, openvino_core, openvino_reason
from flowless.engines.bundle import compatibility
from flowless.engines.bundle.manifest import Artefact
from flowless.engines.streaming.memory import MEMORY, Graph, OnlineBackend, feeds_of
from flowless.errors import FlowlessError, first_line
from flowless.interrupts import raise_lost_ctrl_c
from flowless.machine import usable_physical_cores
from flowless.thread_waiting import threads_stay_awake

#: Target -> the module that runs it, and what installs it.
LIBRARIES: dict[str, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "pip install 'flowless[tensorrt]'"),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install 'flowless[rtx]'"),
    "openvino": ("openvino", "pip install openvino"),
    "onnxruntime": ("onnxruntime", "pip install 'flowless[onnxruntime]'"),
}
#: OpenVINO's `INFERENCE_PRECISION_HINT`, and what the answer is then called.
HINTS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
#: ONNX Runtime's session option (`kOrtSessionOptionsAvx2PrecisionMode`) that keeps int8 exact where the processor has no VNNI: there
#: two products of an unsigned and a signed byte are added in 16 bits, which overflow. It changes nothing on other processors.
EXACT_INT8 = ("session.x64quantprecision", "1")


class Backend(Protocol):
    """What runs an artefact."""

    device: str
    """Where it runs, for people."""

    @property
    def fallback(self) -> str | None:
        """Why it is not on the GPU that is here; None where it is, and where there is none or the library has no use for it."""
        ...

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Return float32 scores `[B, classes]` of uint8 clips `[B, N, m, H, W, 3]`, C-contiguous."""
        ...


def why_not(target: str, artefact: Artefact | None = None) -> str | None:
    """Say in one line why this machine cannot run a target (or this artefact of it); None where it can."""
    module, install = LIBRARIES[target]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed ({install})"
    if not target.startswith("tensorrt"):
        return None
    capability = cuda_driver.compute_capability()
    if capability is None:
        return "there is no NVIDIA GPU here"
    try:
        here = compatibility.what_is_here(module, capability)
    except (ImportError, OSError) as error:  # installed, and its libraries are not
        return f"{module} cannot be imported ({first_line(error)})"
    return compatibility.unknown_gpu(here) if artefact is None else compatibility.mismatch(artefact, here)


def other_arithmetic(hint: str) -> str | None:
    """Return what OpenVINO computes in on this processor, as `fp32`, where that is not what a hint asks for; None where it is."""
    found = hint if hint == "f32" else computes_in(hint)
    return None if found == hint else HINTS.get(found, found)


def open_backend(artefact: Artefact, path: Path, *, classes: int, threads: int | None = None, hint: str | None = None) -> Backend:
    """Open the backend of an artefact.

    Args:
        artefact: What to open.
        path: Its first file.
        classes: Scores per clip.
        threads: CPU threads; None lets the library choose.
        hint: OpenVINO only: arithmetic to compute in, `f32` (the default), `bf16` or `f16`.

    Raises:
        FlowlessError: The library refuses the file.
    """
    openers = {"openvino": _OpenVino, "onnxruntime": _OnnxRuntime}
    try:
        with raise_lost_ctrl_c():  # a library may call it a fault of its own
            if artefact.target in openers:
                graph: Graph = openers[artefact.target](path, threads=threads, hint=hint or artefact.options.get("hint"))
            else:
                from flowless.engines.backends.tensorrt_backend import TensorRt

                graph = TensorRt(path, artefact=artefact, module=LIBRARIES[artefact.target][0], classes=classes)
        return OnlineBackend(graph) if MEMORY in graph.inputs else _ClipBackend(graph)
    except FlowlessError:
        raise
    except Exception as error:  # the libraries raise types of their own, one of them plain RuntimeError
        reason = openvino_reason(error) if artefact.target == "openvino" else first_line(error)
        raise FlowlessError(f"{path}: {artefact.target} cannot load it ({reason}); {compatibility.rebuild(artefact)}.") from error


class _ClipBackend:
    """A backend over a graph of one input, the clip, and one output."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.device, self.fallback = graph.device, graph.fallback

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        (scores,) = self._graph.run(feeds_of(clip, self._graph.inputs)).values()
        return scores.astype(np.float32, copy=False)


class _OpenVino:
    """OpenVINO on the CPU, compiled for batch 1: per clip that is faster than a larger batch on every CPU measured."""

    fallback = None

    def __init__(self, path: Path, *, threads: int | None, hint: str | None) -> None:
        core = openvino_core()
        model = one_at_a_time(core.read_model(path))
        # OpenVINO's own default is bf16 where the processor has it: a precision must be asked for, never slip in.
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint or "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        if not threads_stay_awake():
            settings["ENABLE_CPU_PINNING"] = False
        compiled = core.compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        self.inputs = tuple(item.any_name for item in compiled.inputs)
        self._outputs = tuple(item.any_name for item in compiled.outputs)
        self.device = "CPU"

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows: dict[str, list[np.ndarray]] = {name: [] for name in self._outputs}
        for index in range(len(next(iter(feeds.values())))):
            answer = self._request.infer({name: value[index : index + 1] for name, value in feeds.items()}, share_inputs=True)
            for place, name in enumerate(self._outputs):
                rows[name].append(np.array(answer[place]))  # a copy: the next call writes where this answer lies
        return {name: np.concatenate(parts) for name, parts in rows.items()}


def onnxruntime_options(threads: int | None = None) -> Any:
    """Return the `SessionOptions` of every ONNX Runtime session here; threads None: one a core, idle ones sleep (`thread_waiting.py`)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception; the rest is noise
    options.add_session_config_entry(*EXACT_INT8)
    if threads_stay_awake():
        options.intra_op_num_threads = threads or 0
        return options
    options.intra_op_num_threads = threads or usable_physical_cores()
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return options


class _OnnxRuntime:
    """ONNX Runtime: CUDA where there is a GPU and its provider starts, the CPU otherwise."""

    def __init__(self, path: Path, *, threads: int | None, hint: str | None) -> None:
        from flowless.engines.backends.onnxruntime_cuda import open_session

        session, reason = open_session(path, onnxruntime_options(threads))
        self._session = session
        self.inputs = tuple(item.name for item in session.get_inputs())
        self._outputs = [item.name for item in session.get_outputs()]
        self.device = "GPU" if reason is None else "CPU"
        self.fallback = reason if cuda_driver.compute_capability() else None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        answers = self._session.run(self._outputs, dict(feeds))
        return {name: np.asarray(answer) for name, answer in zip(self._outputs, answers, strict=True)}

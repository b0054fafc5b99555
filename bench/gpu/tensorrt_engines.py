"""The parts of the GPU suite for TensorRT and TensorRT-RTX: engines built here, inspected, compared and timed.

Each part is a process of its own: what a registry has loaded (the plugin's library, the Python plugin) stays in its process.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowless.bench.gpu.clock import need_device
from flowless.bench.gpu.engines import measure
from flowless.bench.gpu.ledger import Ledger, NotHere
from flowless.bench.gpu.network import PRECISIONS, load_reference, read_precise
from flowless.errors import first_line

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class TensorRtRunner:
    """An engine: from the host's memory as flowless runs it, from the device's through a context of its own."""

    def __init__(self, path: Path, *, artefact: Any, classes: int) -> None:
        """Open an engine.

        Raises:
            FlowlessError: The library cannot read the engine here.
        """
        from flowless.engines.backends.tensorrt_backend import TensorRt, open_engine
        from flowless.engines.backends.tensorrt_process import tensorrt_process

        process = tensorrt_process(artefact.target)
        trt = process.trt
        self._backend = TensorRt(path, artefact=artefact, classes=classes)
        # The runtime, and the engine after it, must outlive the context.
        self._runtime = trt.Runtime(process.logger)
        self._engine = open_engine(process, self._runtime, path, artefact=artefact)
        self._context = self._engine.create_execution_context()
        self._stream, self._classes = torch.cuda.Stream(), classes
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._input, self._output = inputs[0], next(name for name in names if name not in inputs)

    def scores(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 scores `[B, classes]` of uint8 clips in the host's memory."""
        (scores,) = self._backend.run({self._input: np.ascontiguousarray(clips)}).values()
        return scores

    def placed(self, clips: np.ndarray) -> Callable[[], object]:
        """Put clips into the device's memory, and return what runs them once."""
        there = torch.from_numpy(clips).cuda()
        out = torch.empty((len(clips), self._classes), dtype=torch.float32, device="cuda")
        torch.cuda.synchronize()
        if not self._context.set_input_shape(self._input, tuple(there.shape)):
            raise RuntimeError(f"the engine refuses clips of shape {tuple(there.shape)}")
        self._context.set_tensor_address(self._input, there.data_ptr())
        self._context.set_tensor_address(self._output, out.data_ptr())

        def run(kept: tuple[torch.Tensor, ...] = (there, out)) -> None:
            del kept  # held by the default, for as long as their addresses are bound
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError("TensorRT could not run the engine")

        return run


def tensorrt_part(ledger: Ledger) -> None:
    """TensorRT: every precision, the PA op as standard operators."""
    _need(ledger, "tensorrt")
    _engines(ledger, "tensorrt", PRECISIONS, name="tensorrt")


def tensorrt_rtx_part(ledger: Ledger) -> None:
    """TensorRT-RTX, which NVIDIA makes for GeForce and RTX: a data-centre GPU may refuse its engines, and then says so."""
    _need(ledger, "tensorrt-rtx")
    _engines(ledger, "tensorrt-rtx", PRECISIONS, name="tensorrt-rtx", may_refuse=True)


def plugin_part(ledger: Ledger) -> None:
    """TensorRT with the PA op's C++ plugin: its library from FLOWLESS_PA_PLUGIN, or compiled here."""
    _need(ledger, "tensorrt")
    from flowless.errors import FlowlessError
    from flowless.export.plugin.plugin_library import build_library, find_library

    library = find_library()
    if library is None:
        try:
            library = build_library(out=ledger.settings.folder / "libflowless_pa_plugin.so")
        except FlowlessError as error:
            raise NotHere(str(error)) from error
    ledger.fact(library=library.name)
    _engines(ledger, "tensorrt", ("fp32", "fp16"), name="tensorrt, plugin", options={"pa": "plugin", "plugin_library": library})


def _need(ledger: Ledger, target: str) -> None:
    """Refuse to begin without the library, or without a GPU."""
    device = need_device(ledger.settings)
    module = _MODULES[target]
    if importlib.util.find_spec(module) is None:
        raise NotHere(f"{module} is not installed")
    try:
        version = importlib.import_module(module).__version__
    except (ImportError, OSError) as error:
        raise NotHere(f"{module} cannot be imported ({first_line(error)})") from error
    ledger.fact(version=str(version))
    # TensorRT-RTX builds without a GPU, so that much can be rehearsed.
    if device.type != "cuda" and target == "tensorrt":
        raise NotHere("tensorrt builds and runs on GPUs alone")


def _engines(
    ledger: Ledger,
    target: str,
    precisions: tuple[str, ...],
    *,
    name: str,
    options: dict[str, Any] | None = None,
    change: Callable[[Any], Any] = lambda proto: proto,
    may_refuse: bool = False,
) -> None:
    from flowless.export.targets.build_options import BuildOptions
    from flowless.export.targets.build_tensorrt import build_tensorrt

    settings = ledger.settings
    reference = load_reference(settings)
    cache = settings.folder / "timing.cache" if target == "tensorrt" else None
    asked = BuildOptions(batch=(1, settings.batches[1], settings.batches[-1]), timing_cache=cache, **(options or {}))
    for precision in precisions:
        if not ledger.in_time(precision):
            continue
        # Only what the graph says decides the arithmetic, so a library may well refuse a half precision, but not fp32.
        with ledger.trial(precision, may_refuse=may_refuse or precision != "fp32"):
            proto = change(read_precise(settings, precision, target=target))
            folder = settings.folder / "engines" / f"{name.replace(', ', '-').replace(' ', '-')}-{precision}"
            folder.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            record = build_tensorrt(proto, folder, target=target, precision=precision, options=asked)  # type: ignore[arg-type]
            built = {"seconds": round(time.monotonic() - started, 1), "mb": round((folder / record.files[0]).stat().st_size / 1e6, 1)}
            ledger.fact(built={**ledger.facts.get("built", {}), precision: built})
            if name == target:
                _inspect(ledger, record, folder, proto)
            if settings.rehearsal:
                raise NotHere("there is no GPU to run what was built")
            runner = TensorRtRunner(folder / record.files[0], artefact=record, classes=reference.scores.shape[1])
            measure(ledger, runner, reference, name=name, precision=precision, batches=settings.batches)


def _inspect(ledger: Ledger, record: Any, folder: Path, proto: Any) -> None:
    """Write down which layers run in which precision, and check that they are what the graph asks for."""
    from flowless.export.verify.inspect_engine import inspect

    with ledger.trial(f"inspection of {record.precision}", may_refuse=record.target == "tensorrt-rtx"):
        found = inspect(record, folder, proto)
        what = f"{record.target} {record.precision}: layers"
        ledger.check(what, passed=not found.wrong, layers=found.summary, wrong=list(found.wrong[:5]))

"""The part `onnxruntime` of the GPU suite: the graphs in ONNX Runtime's CUDA provider."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from flowless.bench.gpu.clock import need_device
from flowless.bench.gpu.engines import measure
from flowless.bench.gpu.ledger import Ledger, NotHere
from flowless.bench.gpu.network import load_reference, read_precise
from flowless.export.graph.pa_function import DOMAIN


class OrtRunner:
    """A session; its clips lie where PyTorch put them."""

    def __init__(self, graph: bytes, *, device: torch.device, tf32: bool = False) -> None:
        """Open a session.

        Raises:
            NotHere: This ONNX Runtime has no CUDA provider, or it does not start here: the reason.
        """
        import onnxruntime

        from flowless.engines.backends.onnxruntime_cuda import open_on_cuda, why_not_cuda

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if device.type == "cuda":
            if reason := why_not_cuda():
                raise NotHere(reason)
            self._session = open_on_cuda(graph, options, tf32=tf32)
        else:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name
        self._device = device

    def scores(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 scores `[B, classes]` of uint8 clips in the host's memory."""
        return np.asarray(self._session.run([self._output], {self._input: clips})[0], np.float32)

    def placed(self, clips: np.ndarray) -> Callable[[], object]:
        """Put clips into the device's memory, and return what runs them once."""
        there = torch.from_numpy(clips).to(self._device)
        binding = self._session.io_binding()
        binding.bind_input(self._input, self._device.type, 0, np.uint8, list(there.shape), there.data_ptr())
        binding.bind_output(self._output, self._device.type)

        def run(kept: torch.Tensor = there) -> None:
            del kept  # held by the default, for as long as its address is bound
            self._session.run_with_iobinding(binding)

        return run


def onnxruntime_part(ledger: Ledger) -> None:
    """Measure every precision whose graph could be made; fp32 also in TF32, which is what ONNX Runtime does unless told."""
    device = need_device(ledger.settings)
    reference = load_reference(ledger.settings)
    # Without its provider there is nothing to measure; `said` then holds its reason.
    OrtRunner(read_precise(ledger.settings, "fp32", target="onnxruntime").SerializeToString(), device=device)
    names = {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}
    for precision, graph in names.items():
        if (precision == "tf32" and device.type != "cuda") or not ledger.in_time(precision):
            continue
        with ledger.trial(precision, may_refuse=precision not in {"fp32", "tf32"}):
            proto = read_precise(ledger.settings, graph, target="onnxruntime")
            started = time.monotonic()
            runner = OrtRunner(proto.SerializeToString(), device=device, tf32=precision == "tf32")
            ledger.fact(open_seconds={**ledger.facts.get("open_seconds", {}), precision: round(time.monotonic() - started, 1)})
            measure(ledger, runner, reference, name="onnxruntime", precision=precision, batches=ledger.settings.batches)
    ledger.fact(functions=f"the PA op as the function of domain {DOMAIN}")

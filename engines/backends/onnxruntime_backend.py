"""Engines that ONNX Runtime runs: on CUDA where there is a GPU and its provider starts, otherwise on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowless import cuda_driver
from flowless.engines.device.device_array import DeviceArray
from flowless.machine import usable_physical_cores
from flowless.thread_waiting import threads_stay_awake

#: Session option (`kOrtSessionOptionsAvx2PrecisionMode`) that keeps int8 sums exact on processors without VNNI, where two products of an
#: unsigned and a signed byte are added in 16 bits, which overflow. It has no effect on other processors.
EXACT_INT8 = ("session.x64quantprecision", "1")


def onnxruntime_options(threads: int | None = None) -> Any:
    """Return the `SessionOptions` of all sessions here.

    Without `threads`: one thread per physical core, asleep while waiting (`thread_waiting.py`).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions as well
    options.add_session_config_entry(*EXACT_INT8)
    if threads_stay_awake():
        options.intra_op_num_threads = threads or 0
        return options
    options.intra_op_num_threads = threads or usable_physical_cores()
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return options


class OnnxRuntime:
    """A graph in a session of ONNX Runtime."""

    def __init__(self, path: Path, *, threads: int | None) -> None:
        from flowless.engines.backends.onnxruntime_cuda import open_session

        session, reason = open_session(path, onnxruntime_options(threads))
        self._session = session
        self.inputs = tuple(item.name for item in session.get_inputs())
        self.outputs = tuple(item.name for item in session.get_outputs())
        self.device = "GPU" if reason is None else "CPU"
        self.gpu = cuda_driver.Gpu() if reason is None else None
        self.fallback = reason if cuda_driver.compute_capability() else None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        results = self._session.run(list(self.outputs), dict(feeds))
        return {name: np.asarray(result) for name, result in zip(self.outputs, results, strict=True)}

    def run_on_device(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int | None) -> None:
        """Compute outputs into arrays by IO binding.

        The CUDA provider computes on a stream that was fixed when the session was opened (`user_compute_stream`), so the host waits
        for the caller's stream before, and for the provider after: the outputs are complete on return.
        """
        if self.gpu is not None:
            with self.gpu.entered():
                self.gpu.synchronize(stream)
        kind, binding = "cpu" if self.gpu is None else "cuda", self._session.io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, kind, 0, array.dtype.type, list(array.shape), array.address)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()

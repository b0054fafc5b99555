"""Engines that OpenVINO runs on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowless.engines.backends.openvino_core import one_at_a_time, openvino_core
from flowless.engines.device.device_array import DeviceArray
from flowless.thread_waiting import threads_stay_awake


class OpenVino:
    """A graph compiled for the CPU and batch 1, which is faster per clip than a larger batch on every CPU measured."""

    device = "CPU"
    fallback = None
    gpu = None

    def __init__(self, path: Path, *, threads: int | None, hint: str | None) -> None:
        core = openvino_core()
        model = one_at_a_time(core.read_model(path))
        # OpenVINO's default is bf16 where the processor has it; here a lower precision is used only where it is set.
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint or "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        if not threads_stay_awake():
            settings["ENABLE_CPU_PINNING"] = False
        compiled = core.compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        self.inputs = tuple(item.any_name for item in compiled.inputs)
        self.outputs = tuple(item.any_name for item in compiled.outputs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name, computed one clip after another."""
        rows: dict[str, list[np.ndarray]] = {name: [] for name in self.outputs}
        for index in range(len(next(iter(feeds.values())))):
            results = self._request.infer({name: value[index : index + 1] for name, value in feeds.items()}, share_inputs=True)
            for place, name in enumerate(self.outputs):
                rows[name].append(np.array(results[place]))  # a copy: the next call overwrites this memory
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def run_on_device(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int | None) -> None:
        """Compute outputs into arrays on the CPU; there is no stream."""
        for name, result in self.run({name: value.numpy() for name, value in inputs.items()}).items():
            np.copyto(outputs[name].numpy(), result)

"""OpenVINO's state in this process: the imported module, one core, and the precisions that this processor computes in."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from typing import Any

import numpy as np

from flowless.errors import first_line

#: OpenVINO's `INFERENCE_PRECISION_HINT` -> the precision that it stands for.
HINTS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
#: Lines of OpenVINO's messages that name places in its source code, or announce the lines that follow.
_PLACES = re.compile(r"^(Exception from |Check '|FrontEnd API failed|Model wasn't fully converted|Summary:|While validating )")


class OpenVinoProcess:
    """Owns what OpenVINO shares between all engines of a process. Its methods may be called from several threads.

    There is one instance, of which the functions of this module are the interface. Compiled models and their inference requests belong
    to one engine each and are not shared.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._core: Any = None
        self._computed: dict[str, str] = {}

    def module(self) -> Any:
        """Import OpenVINO without its telemetry, which would report the import to its makers from a process that it starts.

        Where the program has imported OpenVINO or its telemetry already, that import stays as it is.
        """
        with self._lock:
            if "openvino" in sys.modules or "openvino_telemetry" in sys.modules:
                return importlib.import_module("openvino")
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  as if not installed, which OpenVINO allows
            try:
                return importlib.import_module("openvino")
            finally:
                del sys.modules["openvino_telemetry"]

    def core(self) -> Any:
        """Return the process's `openvino.Core`, which is created once and never destroyed.

        The core's CPU plugin sets an alternate signal stack when it is created and frees it when it is destroyed. Of two cores whose
        lives overlap, the second to be destroyed restores the first one's freed stack (2026.4), and the next signal that Python
        handles, such as Ctrl-C, ends the process. Without the lock, two threads that open their first engine at once create two cores.
        """
        with self._lock:
            if self._core is None:
                self._core = self.module().Core()
            return self._core

    def computes_in(self, hint: str) -> str:
        """Return the precision hint that this processor's kernels use where `hint` is set; see `computes_in` below."""
        with self._lock:
            if hint not in self._computed:
                self._computed[hint] = self._compiled_hint(hint)
            return self._computed[hint]

    def _compiled_hint(self, hint: str) -> str:
        """Compile one convolution with a hint and return the hint that the compiled model reports."""
        openvino = self.module()
        opset13 = openvino.opset13
        pixels = opset13.parameter([1, 8, 8, 8], np.float32)
        weights = np.ones((8, 8, 3, 3), np.float32)
        convolution = opset13.convolution(pixels, weights, strides=[1, 1], pads_begin=[1, 1], pads_end=[1, 1], dilations=[1, 1])
        model = openvino.Model([convolution], [pixels])
        try:
            compiled = self.core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        except RuntimeError:
            return ""
        return compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()


_PROCESS = OpenVinoProcess()


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry (`OpenVinoProcess.module`)."""
    return _PROCESS.module()


def openvino_core() -> Any:
    """Return the process's one `openvino.Core` (`OpenVinoProcess.core`)."""
    return _PROCESS.core()


def computes_in(hint: str) -> str:
    """Return what OpenVINO computes in on this processor when `hint` is set: `f32`, `bf16` or `f16`.

    OpenVINO silently ignores a hint that the processor has no instructions for (`hasHardwareSupport` in its CPU plugin); a compiled
    model reports what it uses. Which instructions are needed differs between its versions, so none is named here. The result is cached.
    It is empty where OpenVINO refuses to compile: it reads the processor's own flags also where oneDNN is limited to fewer
    instructions (ONEDNN_MAX_CPU_ISA).
    """
    return _PROCESS.computes_in(hint)


def other_arithmetic(hint: str) -> str | None:
    """Return the precision that OpenVINO computes in on this processor, such as `fp32`, where it differs from a hint; otherwise None."""
    found = hint if hint == "f32" else computes_in(hint)
    return None if found == hint else HINTS.get(found, found)


def one_at_a_time(model: Any) -> Any:
    """Set batch 1 in every input of a model; return it."""
    model.reshape({item.any_name: [1, *(int(part.get_length()) for part in list(item.partial_shape)[1:])] for item in model.inputs})
    return model


def openvino_reason(error: BaseException) -> str:
    """Return in one line why OpenVINO refused a model: the operator, where the message names one, and what is wrong with it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not _PLACES.match(line.strip())]
    operator = next((line.removeprefix("-- ").removesuffix(" with a message:") for line in lines if line.startswith("-- ")), "")
    rest = [line for line in lines if not line.startswith("-- ")]
    if not rest:
        return operator or first_line(error)
    return f"{operator}: {rest[0]}" if operator else rest[0]

"""OpenVINO's core: one, for as long as the process lives."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from typing import Any

from flowless.errors import first_line

#: Where in OpenVINO's own source something was noticed, and how its translator begins; neither helps a user.
_PLACES = re.compile(r"^(Exception from |Check '|FrontEnd API failed|Model wasn't fully converted|Summary:|While validating )")


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would send to its makers that it was imported, from a process of its own.

    A program that imports OpenVINO itself before decides for itself.
    """
    if "openvino" in sys.modules or "openvino_telemetry" in sys.modules:
        return importlib.import_module("openvino")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  as if it were not installed, which OpenVINO allows for
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules["openvino_telemetry"]


@functools.cache
def openvino_core() -> Any:
    """Return the process's `openvino.Core`.

    Its processor plugin sets an alternate signal stack when it is made and frees it when it goes. Of two whose lives overlap, the second
    to go puts the first one's freed stack back (2026.4), and the next signal that Python handles, such as Ctrl-C, ends the process.
    A core that never goes frees nothing.
    """
    return import_openvino().Core()


@functools.cache
def computes_in(hint: str) -> str:
    """Return what OpenVINO computes in on this processor when it is asked for `hint`: `f32`, `bf16` or `f16`.

    What the processor lacks OpenVINO leaves out without a word (`hasHardwareSupport` in its plugin); a compiled model tells. Which
    instructions that takes differs by its version, so none is named here. The answer stays while the process lives. It is empty where
    OpenVINO refuses: it takes the processor's own word for what it has, also where oneDNN may use fewer instructions (ONEDNN_MAX_CPU_ISA).
    """
    import numpy as np

    openvino = import_openvino()
    opset13 = openvino.opset13
    pixels = opset13.parameter([1, 8, 8, 8], np.float32)
    weights = np.ones((8, 8, 3, 3), np.float32)
    convolution = opset13.convolution(pixels, weights, strides=[1, 1], pads_begin=[1, 1], pads_end=[1, 1], dilations=[1, 1])
    model = openvino.Model([convolution], [pixels])
    try:
        compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    except RuntimeError:
        return ""
    return compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()


def one_at_a_time(model: Any) -> Any:
    """Give a model batch 1 in every input; return it."""
    model.reshape({item.any_name: [1, *(int(part.get_length()) for part in list(item.partial_shape)[1:])] for item in model.inputs})
    return model


def openvino_reason(error: BaseException) -> str:
    """Return why OpenVINO refused, in a line: the operator, where it names one, and what is wrong with it."""
    told = [line.strip() for line in str(error).splitlines() if line.strip() and not _PLACES.match(line.strip())]
    operator = next((line.removeprefix("-- ").removesuffix(" with a message:") for line in told if line.startswith("-- ")), "")
    rest = [line for line in told if not line.startswith("-- ")]
    if not rest:
        return operator or first_line(error)
    return f"{operator}: {rest[0]}" if operator else rest[0]

"""Changes to a precision's graph for one target; they keep the numbers or make them more exact."""

from __future__ import annotations

import onnx

from flowless.engines.targets import Target
from flowless.export.precision.qdq import floats_unrounded, shortcuts_only, unsigned


def graph_for(proto: onnx.ModelProto, *, target: Target, precision: str) -> onnx.ModelProto:
    """Return the graph that a target's engine is built from.

    An int8 graph for TensorRT has signed zero points and no Q/DQ pair in front of residual adds and of operators outside INT8 (see
    `precision/int8.py`), for OpenVINO unsigned zero points and otherwise the same pairs, for ONNX Runtime unsigned ones and every pair.
    """
    if precision != "int8":
        return proto
    if target == "onnxruntime":
        return unsigned(proto)
    proto = shortcuts_only(floats_unrounded(proto))
    return unsigned(proto) if target == "openvino" else proto

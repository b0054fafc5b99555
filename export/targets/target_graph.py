"""What a target needs changed in the graph of a precision; the numbers stay what they are, or become finer."""

from __future__ import annotations

import onnx

from flowless.engines.bundle.manifest import Target
from flowless.export.precision.qdq import floats_unrounded, shortcuts_only, unsigned


def graph_for(proto: onnx.ModelProto, *, target: Target, precision: str) -> onnx.ModelProto:
    """Return the graph that a target is built from.

    int8: TensorRT wants signed numbers and float results in front of residual adds and of what stays out of INT8 (`quantised.py`
    says why), OpenVINO unsigned numbers and the same results, ONNX Runtime unsigned numbers and all of them quantised.
    """
    if precision != "int8":
        return proto
    if target == "onnxruntime":
        return unsigned(proto)
    proto = shortcuts_only(floats_unrounded(proto))
    return unsigned(proto) if target == "openvino" else proto

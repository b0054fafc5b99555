"""Adapt the graph of a precision to a target."""

from __future__ import annotations

import onnx

from flowless.engines.targets import Target
from flowless.export.precision.qdq import bypass_boundary_pairs, quantise_shortcuts_only, unsigned


def graph_for(proto: onnx.ModelProto, *, target: Target, precision: str) -> onnx.ModelProto:
    """Return the graph that a target is built from.

    Only int8 graphs differ by target (see `precision/int8.py`). TensorRT: signed activations, and float inputs of residual adds and
    of float operators. OpenVINO: unsigned activations and the same float inputs. ONNX Runtime: unsigned activations, all quantised.
    """
    if precision != "int8":
        return proto
    if target == "onnxruntime":
        return unsigned(proto)
    proto = quantise_shortcuts_only(bypass_boundary_pairs(proto))
    return unsigned(proto) if target == "openvino" else proto

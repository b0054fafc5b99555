"""The one step between the graph and its targets that decides the arithmetic: every target takes a graph that says it already."""

from __future__ import annotations

import onnx

from flowless.errors import FlowlessError

#: Precision -> what applies it.
PRECISIONS = ("fp32",)
_LATER = ("fp16", "bf16", "int8")


def with_precision(proto: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return the graph in a precision.

    Args:
        proto: The float32 graph that `export_onnx` wrote.
        precision: One of `PRECISIONS`.

    Raises:
        FlowlessError: The precision is unknown, or not made yet.
    """
    if precision == "fp32":
        return proto
    if precision in _LATER:
        hint = (
            " (to compute an fp32 engine in bfloat16 on a CPU, load it with flowless.load(bundle, hint='bf16'))"
            if precision == "bf16"
            else ""
        )
        raise FlowlessError(
            f"precision is {precision!r}; this version builds {', '.join(PRECISIONS)}. "
            f"fp16 by cast graphs and int8 by explicit quantisation come in a later version; use --precision fp32{hint}."
        )
    raise FlowlessError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")

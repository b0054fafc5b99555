"""Convert a graph to a precision: the only step that decides the arithmetic, since every target gets a graph in its precision.

`fp16` and `bf16` graphs are cast by ModelOpt's AutoCast, `int8` graphs have explicit quantisation (Q/DQ pairs) by ModelOpt. All
three change the backbone only (`low_precision_nodes.py`). TensorRT 10.12 and later, and TensorRT-RTX, have only strongly typed networks:
the graph is the one place to set a precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowless.errors import FlowlessError

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from flowless.export.precision.int8 import CalibrationSource

#: From the most exact to the fastest; the order in which `auto` tries them.
PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def with_precision(
    proto: onnx.ModelProto, precision: str, *, clips: np.ndarray | None = None, calibration: CalibrationSource | None = None
) -> onnx.ModelProto:
    """Return the graph in a precision.

    Args:
        proto: The float32 graph that `export_onnx` wrote.
        precision: One of `PRECISIONS`.
        clips: fp16 and bf16: uint8 `[K, N, m, H, W, 3]`; AutoCast runs the first to find values that would overflow.
        calibration: int8: the clips that the scales are measured on.

    Raises:
        FlowlessError: The precision is unknown, or its clips or calibration are missing.
    """
    check_precision(precision)
    if precision == "fp32":
        return proto
    if precision == "int8":
        if calibration is None:
            raise FlowlessError(
                "int8 needs videos to measure its scales on: give an index with --calibrate INDEX (flowless scan makes one), best of the "
                "training videos."
            )
        from flowless.export.precision.int8 import quantise_backbone

        return quantise_backbone(proto, calibration)
    from flowless.export.precision.cast import cast_backbone

    if clips is None:
        raise FlowlessError(f"{precision} needs a clip to find values that would overflow; none was given.")
    return cast_backbone(proto, precision, clips[:1])


def check_precision(precision: str) -> None:
    """Raise FlowlessError for an unknown precision."""
    if precision not in PRECISIONS:
        raise FlowlessError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")

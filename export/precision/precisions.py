"""The one step between the graph and its targets that decides the arithmetic: every target takes a graph that says it already.

`fp16` and `bf16` graphs are cast by ModelOpt's AutoCast, `int8` graphs carry explicit quantisation (Q/DQ) by ModelOpt. All
three touch the backbone alone (`precision_regions.py`). TensorRT 10.12 and later, and TensorRT-RTX, know strongly typed networks only, so
there is no other place in which a precision could be asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowless.errors import FlowlessError

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from flowless.export.precision.int8 import Measured

#: From the most exact to the fastest; the order in which `auto` tries them.
PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def with_precision(
    proto: onnx.ModelProto, precision: str, *, clips: np.ndarray | None = None, calibration: Measured | None = None
) -> onnx.ModelProto:
    """Return the graph in a precision.

    Args:
        proto: The float32 graph that `export_onnx` wrote.
        precision: One of `PRECISIONS`.
        clips: fp16 and bf16: uint8 `[K, N, m, H, W, 3]`, a clip or two that AutoCast runs to see the size of numbers.
        calibration: int8: the videos, or clips, that the scales are measured on.

    Raises:
        FlowlessError: The precision is unknown, or lacks what it is made with.
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
        from flowless.export.precision.int8 import quantised

        return quantised(proto, calibration)
    from flowless.export.precision.cast import cast

    if clips is None:
        raise FlowlessError(f"{precision} needs a clip to run, to see how large its numbers become; none was given.")
    return cast(proto, precision, clips[:1])


def check_precision(precision: str) -> None:
    """Refuse a precision that does not exist."""
    if precision not in PRECISIONS:
        raise FlowlessError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")

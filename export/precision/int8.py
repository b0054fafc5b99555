"""INT8 by explicit quantisation: ModelOpt puts Q/DQ pairs round the backbone's convolutions, weights per channel.

In a transformer's blocks it puts them round the products with weights (one scale a weight: ModelOpt has no other for products).
Attention's own two products, both sides of which are activations, stay in floating point: a quarter of da-vit-b's operations
with 8 segments.

What lies between two convolutions decides whether a GPU stays in INT8:

- Residual adds: both summands get a pair here, which ONNX Runtime needs. For TensorRT and OpenVINO `shortcuts_only` takes out
  the one behind the block's last convolution: TensorRT then fuses convolution, addition, activation and the next Q into one
  INT8 kernel, where a pair on both summands would force the convolution to write and read its result once more.
- Concatenations of a block's paths: each path's end gets a pair, all of one scale (ModelOpt gives them the largest), so that
  joining moves bytes. Without those pairs ONNX Runtime computes what makes the parts in floating point, and OpenVINO 2026.4.1
  gives wrong numbers.
- Temporal shift: a block's input is quantised once, before it is cut up, and the shifted tensor once more with the same
  scale. Slices, padding (zero is exact) and concatenation then move INT8 numbers unchanged, the second rounding
  changes nothing, and the unshifted shortcut reads the same INT8 tensor.

STM's modules stay in floating point between the quantised convolutions: their temporal weights and differences are sums of a few
numbers with signs, and CMM's convolutions have too few channels for an INT8 kernel (`unquantised` in the model). Such a module
reads a convolution's result through a pair here, since ONNX Runtime has no INT8 convolution whose result is a float. TensorRT and
OpenVINO have: for them `floats_unrounded` leads it past the pair.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import onnx
from onnx import NodeProto, numpy_helper

from flowless.export.precision.modelopt_output import modelopt_quiet
from flowless.export.precision.qdq import fold_weights, keep_grid_through_shifts, spare
from flowless.export.precision.qdq_boundaries import find_boundaries, insert_poolings, remove_poolings
from flowless.export.precision.regions import backbone_nodes, kept_exact, named

if TYPE_CHECKING:
    from flowless.export.precision.calibration import Method

#: What is quantised: what multiplies, and what would otherwise stand in floating point between two that do.
_QUANTISED = {"Conv", "MatMul", "Gemm", "Add", "MaxPool", "Concat", "Pad"}
#: What makes a concatenation, or padding, one of a tensor's own parts: a temporal shift.
_CUTS = {"Slice", "Pad", "Mul"}


class Measured(Protocol):
    """What the scales of activations are measured on: a `Calibration` on videos, or clips that a caller has already."""

    @property
    def method(self) -> Method:
        """How a scale follows from the numbers seen."""
        ...

    def stream(self, inputs: Sequence[str]) -> AbstractContextManager[Any]:
        """Give a reader with `get_next`, `get_first` and `rewind`, as ONNX Runtime's calibrators have it."""
        ...


def quantised(proto: onnx.ModelProto, calibration: Measured) -> onnx.ModelProto:
    """Return the graph with its backbone in INT8 by explicit Q/DQ, everything else in float32.

    Args:
        proto: The float32 graph.
        calibration: What the scales of activations are measured on, streamed clip by clip.

    Raises:
        FlowlessError: A video cannot be read, or ModelOpt refuses the graph.
    """
    chosen = _chosen(proto)
    boundaries = find_boundaries(proto, set(chosen))
    inputs = [item.name for item in proto.graph.input]
    with tempfile.TemporaryDirectory(prefix="flowless-int8-") as name, calibration.stream(inputs) as clips, modelopt_quiet("int8"):
        from modelopt.onnx.quantization import quantize

        source, target = Path(name) / "model.onnx", Path(name) / "int8.onnx"
        onnx.save(insert_poolings(proto, boundaries), source)
        quantize(
            str(source),
            quantize_mode="int8",
            calibration_method=calibration.method,
            calibration_data_reader=clips,  # pyright: ignore[reportArgumentType] - any object with get_next
            calibration_eps=["cpu"],
            op_types_to_quantize=sorted(_QUANTISED),
            nodes_to_quantize=[f"^{re.escape(node)}$" for node in (*chosen, *(boundary.node.name for boundary in boundaries))],
            high_precision_dtype="fp32",
            output_path=str(target),
            log_level="CRITICAL",
            # It looks for matrix-vector products among what is excluded anyway, at the cost of one more run.
            enable_gemv_detection_for_trt=False,
        )
        result = onnx.load(target)
    # With the boundaries still in it: what reads through one stays behind its pair.
    spare(result, set(kept_exact(proto)))
    unrounded = remove_poolings(result, boundaries)
    keep_grid_through_shifts(result)
    fold_weights(result)
    del result.metadata_props[:]
    result.metadata_props.extend(proto.metadata_props)
    result.metadata_props.add(key="flowless.qdq_boundaries", value=json.dumps(unrounded))
    result.producer_name, result.producer_version = proto.producer_name, proto.producer_version
    onnx.checker.check_model(result, full_check=True)
    return result


def _chosen(proto: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes whose inputs are quantised."""
    backbone = backbone_nodes(proto, quantised=True)
    maker = {output: node.op_type for node in proto.graph.node for output in node.output}
    nodes = [node for node in proto.graph.node if node.name in backbone and node.op_type in _QUANTISED]
    blocks = named(proto, "matrix_backbone")
    return [node.name for node in nodes if _is_chosen(node, maker, inside=node.name in blocks)]


def _is_chosen(node: NodeProto, maker: dict[str, str], *, inside: bool) -> bool:
    """Whether a node of the backbone has its inputs quantised; `inside` a transformer's blocks the products with weights alone."""
    if inside:
        return node.op_type in {"MatMul", "Gemm"}
    return node.op_type not in {"Concat", "Pad"} or _CUTS.isdisjoint(maker.get(name, "") for name in node.input)


def scales_hash(proto: onnx.ModelProto) -> str:
    """Return the SHA-256 of every scale and zero point of a graph, by name: equal hashes, equal quantisation."""
    names = {name for node in proto.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"} for name in node.input[1:]}
    digest = hashlib.sha256()
    for item in sorted((item for item in proto.graph.initializer if item.name in names), key=lambda item: item.name):
        digest.update(item.name.encode())
        digest.update(numpy_helper.to_array(item).tobytes())
    return digest.hexdigest()

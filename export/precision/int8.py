"""INT8 by explicit quantisation: ModelOpt inserts Q/DQ pairs at the backbone's convolutions, weights per channel.

In a transformer's blocks it inserts them at the products with weights (one scale per weight: ModelOpt supports no other for products).
Attention's two products of activations stay in floating point: a quarter of da-vit-b's operations with 8 segments.

The operators between two convolutions decide whether a GPU stays in INT8:

- Residual adds: both summands get a pair here, which ONNX Runtime needs. For TensorRT and OpenVINO `quantise_shortcuts_only` removes
  the pair after the block's last convolution: TensorRT then fuses convolution, addition, activation and the next Q into one
  INT8 kernel; with a pair on both summands the convolution's output would be written and read once more.
- Concatenations of a block's paths: the end of each path gets a pair, all with one scale (ModelOpt takes the largest), so that
  the concatenation copies bytes. Without those pairs ONNX Runtime computes the paths' last operators in floating point, and OpenVINO
  2026.4.1 gives wrong results.
- Temporal shift: a block's input is quantised once, before it is sliced, and the shifted tensor again with the same
  scale. Slices, padding (zero is exact) and concatenation then copy INT8 numbers, the second rounding changes nothing, and the unshifted
  shortcut reads the same INT8 tensor.

STM's modules stay in floating point between the quantised convolutions: their temporal weights and differences are sums of a few
signed numbers, and CMM's convolutions have too few channels for an INT8 kernel (the model's attribute `unquantised`). Such a module
reads a convolution's output through a pair here, since ONNX Runtime has no INT8 convolution with a float output. TensorRT and
OpenVINO have one: for them `bypass_boundary_pairs` removes the pair.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import onnx
from onnx import NodeProto, numpy_helper

from flowless.export.graph.graph_feeds import GraphFeeds
from flowless.export.precision.low_precision_nodes import backbone_nodes, float32_nodes, metadata_names
from flowless.export.precision.modelopt_output import without_modelopt_output
from flowless.export.precision.qdq import bypass_pairs, share_scale_through_shifts, store_int8_weights
from flowless.export.precision.qdq_boundaries import find_boundaries, insert_poolings, remove_poolings

if TYPE_CHECKING:
    from flowless.export.precision.calibration import Method

#: Operators that are quantised: those that multiply, and those that would otherwise run in floating point between two that multiply.
_QUANTISED = {"Conv", "MatMul", "Gemm", "Add", "MaxPool", "Concat", "Pad"}
#: Producers of the inputs of a concatenation or padding that belongs to a temporal shift.
_CUTS = {"Slice", "Pad", "Mul"}


class CalibrationSource(Protocol):
    """A source of clips to measure the scales of activations on: a `Calibration` on videos, or a caller's own clips."""

    @property
    def method(self) -> Method:
        """How a scale is computed from the values seen."""
        ...

    def stream(self, feeds: GraphFeeds) -> AbstractContextManager[Any]:
        """Open a reader of a graph's inputs with `get_next`, `get_first` and `rewind`, as ONNX Runtime's calibrators expect."""
        ...


def quantise_backbone(proto: onnx.ModelProto, calibration: CalibrationSource) -> onnx.ModelProto:
    """Return the graph with its backbone in INT8 by explicit Q/DQ, everything else in float32.

    Args:
        proto: The float32 graph.
        calibration: The clips that the scales of activations are measured on, streamed one by one.

    Raises:
        FlowlessError: A video cannot be read, or ModelOpt refuses the graph.
    """
    chosen = _chosen(proto)
    boundaries = find_boundaries(proto, set(chosen))
    feeds = GraphFeeds(proto)
    with tempfile.TemporaryDirectory(prefix="flowless-int8-") as name, calibration.stream(feeds) as clips, without_modelopt_output("int8"):
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
            # It would search for matrix-vector products among excluded nodes, at the cost of one more run.
            enable_gemv_detection_for_trt=False,
        )
        result = onnx.load(target)
    # Before the MaxPools are removed, so that their readers keep reading the pair.
    bypass_pairs(result, set(float32_nodes(proto)))
    unrounded = remove_poolings(result, boundaries)
    share_scale_through_shifts(result)
    store_int8_weights(result)
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
    blocks = metadata_names(proto, "matrix_backbone")
    return [node.name for node in nodes if _is_chosen(node, maker, inside=node.name in blocks)]


def _is_chosen(node: NodeProto, maker: dict[str, str], *, inside: bool) -> bool:
    """Whether a node's inputs are quantised; `inside` a transformer's blocks only those of products with weights."""
    if inside:
        return node.op_type in {"MatMul", "Gemm"}
    return node.op_type not in {"Concat", "Pad"} or _CUTS.isdisjoint(maker.get(name, "") for name in node.input)


def scales_hash(proto: onnx.ModelProto) -> str:
    """Return the SHA-256 over the scales and zero points of a graph; equal hashes mean equal quantisation."""
    names = {name for node in proto.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"} for name in node.input[1:]}
    digest = hashlib.sha256()
    for item in sorted((item for item in proto.graph.initializer if item.name in names), key=lambda item: item.name):
        digest.update(item.name.encode())
        digest.update(numpy_helper.to_array(item).tobytes())
    return digest.hexdigest()

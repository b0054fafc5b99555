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
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto, numpy_helper

from flowless.export.calibration import Calibration
from flowless.export.modelopt_quiet import modelopt_quiet
from flowless.export.quantisers import fold_weights, keep_grid_through_shifts, spare
from flowless.export.zones import backbone_nodes, kept_exact, named

#: What is quantised: what multiplies, and what would otherwise stand in floating point between two that do.
_QUANTISED = {"Conv", "MatMul", "Gemm", "Add", "MaxPool", "Concat", "Pad"}
#: What makes a concatenation, or padding, one of a tensor's own parts: a temporal shift.
_CUTS = {"Slice", "Pad", "Mul"}


def quantised(proto: onnx.ModelProto, calibration: Calibration) -> onnx.ModelProto:
    """Return the graph with its backbone in INT8 by explicit Q/DQ, everything else in float32.

    Args:
        proto: The float32 graph.
        calibration: What the scales of activations are measured on, streamed clip by clip.

    Raises:
        FlowlessError: A video cannot be read, or ModelOpt refuses the graph.
    """
    chosen = _chosen(proto)
    gates = _gates(proto, set(chosen))
    inputs = [item.name for item in proto.graph.input]
    with tempfile.TemporaryDirectory(prefix="flowless-int8-") as name, calibration.stream(inputs) as clips, modelopt_quiet("int8"):
        from modelopt.onnx.quantization import quantize

        source, target = Path(name) / "model.onnx", Path(name) / "int8.onnx"
        onnx.save(_closed(proto, gates), source)
        quantize(
            str(source),
            quantize_mode="int8",
            calibration_method=calibration.method,
            calibration_data_reader=clips,  # pyright: ignore[reportArgumentType] - any object with get_next
            calibration_eps=["cpu"],
            op_types_to_quantize=sorted(_QUANTISED),
            nodes_to_quantize=[f"^{re.escape(node)}$" for node in (*chosen, *(gate.node.name for gate in gates))],
            high_precision_dtype="fp32",
            output_path=str(target),
            log_level="CRITICAL",
            # It looks for matrix-vector products among what is excluded anyway, at the cost of one more run.
            enable_gemv_detection_for_trt=False,
        )
        result = onnx.load(target)
    spare(result, set(kept_exact(proto)))
    keep_grid_through_shifts(result)
    fold_weights(result)
    del result.metadata_props[:]
    result.metadata_props.extend(proto.metadata_props)
    _opened(result, gates)
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


@dataclass(frozen=True)
class _Gate:
    """A pooling of single numbers between a quantised convolution's result and what reads it in floating point.

    It changes nothing, and ModelOpt gives it a pair and measures its scale.
    """

    behind: str
    """The node whose result it passes on: the convolution, or its activation."""
    node: NodeProto
    readers: list[str]
    """Names of the nodes that read the result through it."""


def _gates(proto: onnx.ModelProto, chosen: Collection[str]) -> list[_Gate]:
    """Return the gates that a graph needs: where a result meets what stays out of INT8, or nothing that reads it quantised."""
    floats = named(proto, "unquantised")
    readers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in (node for node in proto.graph.node if node.op_type == "Conv" and node.name in chosen):
        end, behind = node, readers.get(node.output[0], [])
        if len(behind) == 1 and behind[0].op_type == "Relu":
            end, behind = behind[0], readers.get(behind[0].output[0], [])
        alone = all(reader.name not in chosen for reader in behind)
        meeting = [reader.name for reader in behind if alone or reader.name in floats]
        if meeting:
            tensor = end.output[0]
            rank = len(next(item.ints for item in node.attribute if item.name == "kernel_shape"))
            pooling = onnx.helper.make_node("MaxPool", [tensor], [f"{tensor}.gated"], name=f"{tensor}.gate", kernel_shape=[1] * rank)
            found.append(_Gate(end.name, pooling, meeting))
    return found


def _closed(proto: onnx.ModelProto, gates: list[_Gate]) -> onnx.ModelProto:
    """Return the graph with its gates in it."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    behind = {gate.behind: gate.node for gate in gates}
    through = {(reader, gate.node.input[0]): gate.node.output[0] for gate in gates for reader in gate.readers}
    nodes: list[NodeProto] = []
    for node in result.graph.node:
        node.input[:] = [through.get((node.name, name), name) for name in node.input]
        nodes += [node, behind[node.name]] if node.name in behind else [node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _opened(proto: onnx.ModelProto, gates: list[_Gate]) -> None:
    """Take the gates out, in place: what is behind one reads its pair, and is named in the metadata (`flowless.gated`)."""
    names = {gate.node.name for gate in gates}
    passed = {node.output[0]: node.input[0] for node in proto.graph.node if node.name in names}
    kept = [node for node in proto.graph.node if node.name not in names]
    for node in kept:
        node.input[:] = [passed.get(name, name) for name in node.input]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    proto.metadata_props.add(key="flowless.gated", value=json.dumps([name for gate in gates for name in gate.readers]))


def scales_hash(proto: onnx.ModelProto) -> str:
    """Return the SHA-256 of every scale and zero point of a graph, by name: equal hashes, equal quantisation."""
    names = {name for node in proto.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"} for name in node.input[1:]}
    digest = hashlib.sha256()
    for item in sorted((item for item in proto.graph.initializer if item.name in names), key=lambda item: item.name):
        digest.update(item.name.encode())
        digest.update(numpy_helper.to_array(item).tobytes())
    return digest.hexdigest()

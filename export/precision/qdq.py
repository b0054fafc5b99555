"""The Q/DQ pairs of a quantised graph: finding them, giving them other scales or types."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from flowless.export.precision.regions import noted

#: Operators that pass numbers on, or zeros: what goes in quantised comes out on the same grid.
_MOVES = {"Slice", "Pad", "Concat", "MaxPool", "Mul", "Relu", "Reshape", "Transpose"}


@dataclass(frozen=True)
class Pair:
    """One activation's quantisation: QuantizeLinear and the DequantizeLinear behind it."""

    quantise: NodeProto
    dequantise: NodeProto


def activation_pairs(proto: onnx.ModelProto) -> Iterator[Pair]:
    """Yield the pairs that quantise activations; a weight's input is a constant, so weights are left out."""
    constants = {item.name for item in proto.graph.initializer}
    quantisers = {node.output[0]: node for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in quantisers:
            quantise = quantisers[node.input[0]]
            if quantise.input[0] not in constants:
                yield Pair(quantise, node)


def fold_weights(proto: onnx.ModelProto) -> int:
    """Store quantised weights as the INT8 numbers that they are, a quarter of the size, in place.

    Returns:
        How many weights were folded.
    """
    values = {item.name: item for item in proto.graph.initializer}
    folded = 0
    for node in [node for node in proto.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in values]:
        weight, scale, zero = (numpy_helper.to_array(values[name]) for name in node.input[:3])
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        shape = [-1 if place == axis % weight.ndim else 1 for place in range(weight.ndim)] if scale.size > 1 else []
        # As ONNX says: halves round to even, then the zero point, then the type's limits.
        limits = np.iinfo(zero.dtype)
        numbers = np.rint(weight / scale.reshape(shape)) + zero.astype(np.int32).reshape(shape)
        array = np.clip(numbers, limits.min, limits.max).astype(zero.dtype)
        proto.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        proto.graph.node.remove(node)
        folded += 1
    _drop_unread(proto)
    return folded


def keep_grid_through_shifts(proto: onnx.ModelProto) -> int:
    """Give what only moves quantised numbers the scale that they have already, so that quantising again changes nothing.

    Returns:
        How many pairs got another scale.
    """
    maker = {output: node for node in proto.graph.node for output in node.output}
    pairs = list(activation_pairs(proto))
    by_output = {pair.dequantise.output[0]: pair for pair in pairs}
    changed = 0
    for pair in pairs:
        source = _moved_from(pair.quantise.input[0], maker, set(by_output))
        if source is None:
            continue
        scale = by_output[source].quantise.input[1]
        if pair.quantise.input[1] != scale:
            pair.quantise.input[1] = pair.dequantise.input[1] = scale
            changed += 1
    return changed


def spare(proto: onnx.ModelProto, exact: Container[str]) -> int:
    """Let nodes that stay exact read the numbers themselves, where they share a quantised tensor with the backbone.

    Args:
        proto: The quantised graph, changed in place.
        exact: Names of the nodes.

    Returns:
        How many inputs were led past their pair.
    """
    behind = {pair.dequantise.output[0]: pair.quantise.input[0] for pair in activation_pairs(proto)}
    changed = 0
    for node in (node for node in proto.graph.node if node.name in exact):
        for place, name in enumerate(node.input):
            if name in behind:
                node.input[place] = behind[name]
                changed += 1
    return changed


def shortcuts_only(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with one summand of each residual add left as the convolution gives it: the block's last one."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    maker = {output: node for node in result.graph.node for output in node.output}
    depth = _convolutions_before(result)
    pairs = {pair.dequantise.output[0]: pair for pair in activation_pairs(result)}
    for node in result.graph.node:
        sides = [name for name in node.input if name in pairs] if node.op_type == "Add" else []
        behind = [name for name in sides if _is_convolution(maker.get(pairs[name].quantise.input[0]))]
        if behind:
            deepest = max(behind, key=lambda name: depth[name])
            node.input[list(node.input).index(deepest)] = pairs[deepest].quantise.input[0]
    _drop_unread_nodes(result)
    return result


def floats_unrounded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with nodes that stay out of INT8 reading a convolution's result as it was before its pair (`qdq_boundaries.py`)."""
    reading = {(node, tensor) for node, tensor in noted(proto, "qdq_boundaries")}
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    behind = {pair.dequantise.output[0]: pair.quantise.input[0] for pair in activation_pairs(result)}
    for node in result.graph.node:
        node.input[:] = [behind[name] if (node.name, name) in reading else name for name in node.input]
    _drop_unread_nodes(result)
    return result


def unsigned(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with activations in UINT8, for processors.

    What a ReLU made is never negative: 0 to 255 serve it twice as finely as 0 to 127. What may be negative keeps its numbers,
    128 higher. TensorRT takes INT8 with zero at zero alone, processors multiply unsigned with signed bytes anyway; ONNX
    Runtime is several times faster so, and OpenVINO 2026.4.1 gets signed concatenations wrong.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    maker = {output: node for node in result.graph.node for output in node.output}
    values = {item.name: item for item in result.graph.initializer}
    for place, pair in enumerate(activation_pairs(result)):
        scale = numpy_helper.to_array(values[pair.quantise.input[1]])
        positive = _never_negative(pair.quantise.input[0], maker)
        scale, zero = (scale * np.float32(127 / 255), 0) if positive else (scale, 128)
        for name, value in ((f"flowless.u8.{place}.scale", scale), (f"flowless.u8.{place}.zero", np.full(scale.shape, zero, np.uint8))):
            result.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        for node in (pair.quantise, pair.dequantise):
            node.input[1], node.input[2] = f"flowless.u8.{place}.scale", f"flowless.u8.{place}.zero"
    _drop_unread(result)
    return result


def _is_convolution(node: NodeProto | None) -> bool:
    return node is not None and node.op_type == "Conv"


def _convolutions_before(proto: onnx.ModelProto) -> dict[str, int]:
    """Return for each tensor the largest number of convolutions on a way to it."""
    depth: dict[str, int] = {}
    for node in proto.graph.node:
        before = max((depth.get(name, 0) for name in node.input), default=0)
        depth.update(dict.fromkeys(node.output, before + (node.op_type == "Conv")))
    return depth


def _moved_from(name: str, maker: dict[str, NodeProto], quantised: set[str]) -> str | None:
    """Return the one quantised tensor that a concatenation of moved parts came from, None where it is anything else."""
    node = maker.get(name)
    if node is None or node.op_type != "Concat":
        return None
    sources = {_source(part, maker, quantised) for part in node.input}
    return sources.pop() if len(sources) == 1 else None


def _source(name: str, maker: dict[str, NodeProto], quantised: set[str]) -> str | None:
    while name not in quantised:
        node = maker.get(name)
        if node is None or node.op_type not in {"Slice", "Pad", "Mul"}:
            return None
        name = _data_input(node, maker)
    return name


def _data_input(node: NodeProto, maker: dict[str, NodeProto]) -> str:
    """Return the input that is moved; of a product, the padded slice, the other being the shift's zeros and ones."""
    if node.op_type == "Mul":
        return next((name for name in node.input if name in maker and maker[name].op_type in {"Pad", "Slice"}), "")
    return node.input[0]


def _never_negative(name: str, maker: dict[str, NodeProto]) -> bool:
    """Whether a tensor is a ReLU's, moved or as it is."""
    node = maker.get(name)
    if node is None:
        return False
    if node.op_type == "Relu":
        return True
    if node.op_type == "Concat":
        return all(_never_negative(part, maker) for part in node.input)
    if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        return _never_negative(node.input[0], maker)
    return node.op_type in _MOVES and _never_negative(_data_input(node, maker), maker)


def _drop_unread_nodes(proto: onnx.ModelProto) -> None:
    """Take out pairs that nothing reads any longer, and their constants."""
    outputs = {item.name for item in proto.graph.output}
    while True:
        read = {name for node in proto.graph.node for name in node.input} | outputs
        dead = [node for node in proto.graph.node if not read & set(node.output)]
        if not dead:
            break
        for node in dead:
            proto.graph.node.remove(node)
    _drop_unread(proto)


def _drop_unread(proto: onnx.ModelProto) -> None:
    read = {name for node in proto.graph.node for name in node.input}
    kept = [item for item in proto.graph.initializer if item.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)

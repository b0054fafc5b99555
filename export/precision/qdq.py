"""Find and change the Q/DQ pairs of a quantised graph: their scales, their types, and who reads them."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from flowless.engines.streaming.state import NEXT
from flowless.export.precision.low_precision_nodes import metadata_list

#: Operators that copy values or insert zeros: a quantised input gives an output on the same grid.
_MOVES = {"Slice", "Pad", "Concat", "MaxPool", "Mul", "Relu", "Reshape", "Transpose"}


@dataclass(frozen=True)
class Pair:
    """The quantisation of one activation: QuantizeLinear and the DequantizeLinear that follows it."""

    quantise: NodeProto
    dequantise: NodeProto


def activation_pairs(proto: onnx.ModelProto) -> Iterator[Pair]:
    """Yield the pairs that quantise activations; pairs whose input is a constant quantise weights and are left out."""
    constants = {item.name for item in proto.graph.initializer}
    quantisers = {node.output[0]: node for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in quantisers:
            quantise = quantisers[node.input[0]]
            if quantise.input[0] not in constants:
                yield Pair(quantise, node)


def store_int8_weights(proto: onnx.ModelProto) -> int:
    """Store quantised weights as INT8 initializers, a quarter of the size, in place.

    Returns:
        The number of weights.
    """
    values = {item.name: item for item in proto.graph.initializer}
    folded = 0
    for node in [node for node in proto.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in values]:
        weight, scale, zero = (numpy_helper.to_array(values[name]) for name in node.input[:3])
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        shape = [-1 if place == axis % weight.ndim else 1 for place in range(weight.ndim)] if scale.size > 1 else []
        # As ONNX defines QuantizeLinear: round half to even, add the zero point, saturate.
        limits = np.iinfo(zero.dtype)
        numbers = np.rint(weight / scale.reshape(shape)) + zero.astype(np.int32).reshape(shape)
        array = np.clip(numbers, limits.min, limits.max).astype(zero.dtype)
        proto.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        proto.graph.node.remove(node)
        folded += 1
    _drop_unread(proto)
    return folded


def share_scale_through_shifts(proto: onnx.ModelProto) -> int:
    """Give each pair after a temporal shift the scale of the shift's quantised input, so that quantising again changes nothing.

    In a streaming graph the shift joins the quantised input with channels of the step before, which lie on the same grid: they get a
    pair of that scale as well, so that the concatenation copies bytes.

    Returns:
        The number of pairs whose scale changed.
    """
    maker = _makers(proto)
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
        _quantise_state(proto, maker[pair.quantise.input[0]], by_output[source])
    return changed


def _quantise_state(proto: onnx.ModelProto, joining: NodeProto, like: Pair) -> None:
    """Put a pair with the scale of another before each of a concatenation's inputs that is an input of the graph."""
    states = {item.name for item in proto.graph.input}
    for place, name in enumerate(joining.input):
        if name not in states:
            continue
        at = next(place for place, node in enumerate(proto.graph.node) if node is joining or node.name == joining.name)
        for node, read, made in ((like.dequantise, f"{name}_quantised", f"{name}_dequantised"), (like.quantise, name, f"{name}_quantised")):
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name, copy.input[0], copy.output[0] = made, read, made
            proto.graph.node.insert(at, copy)
        joining.input[place] = f"{name}_dequantised"


def bypass_pairs(proto: onnx.ModelProto, exact: Container[str]) -> int:
    """Let nodes that stay in float32 read the unquantised tensor, if they share a quantised one with the backbone.

    Args:
        proto: The quantised graph, changed in place.
        exact: Names of the nodes.

    Returns:
        The number of inputs that were changed.
    """
    behind = {pair.dequantise.output[0]: pair.quantise.input[0] for pair in activation_pairs(proto)}
    changed = 0
    for node in (node for node in proto.graph.node if node.name in exact):
        for place, name in enumerate(node.input):
            if name in behind:
                node.input[place] = behind[name]
                changed += 1
    return changed


def quantise_shortcuts_only(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without the pair at each residual add's last convolution: only the shortcut stays quantised."""
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


def bypass_boundary_pairs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without the pairs of `qdq_boundaries.py`: float operators read the convolution's output directly."""
    reading = {(node, tensor) for node, tensor in metadata_list(proto, "qdq_boundaries")}
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    behind = {pair.dequantise.output[0]: pair.quantise.input[0] for pair in activation_pairs(result)}
    for node in result.graph.node:
        node.input[:] = [behind[name] if (node.name, name) in reading else name for name in node.input]
    _drop_unread_nodes(result)
    return result


def unsigned(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with activations in UINT8, for CPUs.

    The output of a ReLU is never negative: 0 to 255 resolve it twice as finely as 0 to 127. Tensors that may be negative keep their scale,
    with zero point 128. TensorRT accepts only INT8 with zero point 0, while CPUs multiply unsigned by signed bytes: ONNX
    Runtime is several times faster with UINT8, and OpenVINO 2026.4.1 computes signed concatenations wrongly.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    maker = _makers(result)
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


def _makers(proto: onnx.ModelProto) -> dict[str, NodeProto]:
    """Return the node that makes each tensor; of a stream's state the node that makes its next value, since it made this one too."""
    maker = {output: node for node in proto.graph.node for output in node.output}
    return {item.name: maker[NEXT + item.name] for item in proto.graph.input if NEXT + item.name in maker} | maker


def _is_convolution(node: NodeProto | None) -> bool:
    return node is not None and node.op_type == "Conv"


def _convolutions_before(proto: onnx.ModelProto) -> dict[str, int]:
    """Return for each tensor the largest number of convolutions on a path to it."""
    depth: dict[str, int] = {}
    for node in proto.graph.node:
        before = max((depth.get(name, 0) for name in node.input), default=0)
        depth.update(dict.fromkeys(node.output, before + (node.op_type == "Conv")))
    return depth


def _moved_from(name: str, maker: dict[str, NodeProto], quantised: set[str]) -> str | None:
    """Return the quantised tensor whose shifted parts a concatenation joins; None for any other tensor."""
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
    """Return the data input; of a product, the padded slice, since the other factor is the shift's mask of zeros and ones."""
    if node.op_type == "Mul":
        return next((name for name in node.input if name in maker and maker[name].op_type in {"Pad", "Slice"}), "")
    return node.input[0]


def _never_negative(name: str, maker: dict[str, NodeProto]) -> bool:
    """Whether a tensor is a ReLU's output, copied or not."""
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
    """Remove nodes whose outputs no node reads, and their constants."""
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

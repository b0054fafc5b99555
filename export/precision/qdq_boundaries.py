"""Insert a Q/DQ pair where an INT8 convolution feeds a float operator, its scale calibrated like any other.

ONNX Runtime has no INT8 convolution whose result is a float, so there the result is rounded; TensorRT and OpenVINO have one,
and their graphs read the result itself (`quantisers.floats_unrounded`).

First a 1 x 1 MaxPool is inserted behind the convolution, which changes nothing, so that ModelOpt calibrates the tensor and gives it a
pair; the MaxPool is removed afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto

from flowless.errors import FlowlessError
from flowless.export.precision.regions import kept_exact, named


@dataclass(frozen=True)
class Boundary:
    """A convolution whose result a float operator reads."""

    behind: str
    """Name of the node whose result is quantised: the convolution, or its activation."""
    node: NodeProto
    """The MaxPool behind it."""
    readers: tuple[str, ...]
    """Names of the nodes that read the result through the MaxPool."""


def find_boundaries(proto: onnx.ModelProto, chosen: Collection[str]) -> list[Boundary]:
    """Return where a graph needs a Q/DQ pair.

    Args:
        proto: The float32 graph.
        chosen: Names of the nodes whose inputs are quantised.

    Returns:
        One for each of the chosen convolutions whose result is read by what stays out of INT8, or by nothing that is chosen.
    """
    floats = named(proto, "unquantised") | set(kept_exact(proto))
    weights = {item.name: item for item in proto.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    found = []
    for node in proto.graph.node:
        if node.op_type != "Conv" or node.name not in chosen or node.input[1] not in weights:
            continue
        end, behind = node, readers.get(node.output[0], [])
        if len(behind) == 1 and behind[0].op_type == "Relu":
            end, behind = behind[0], readers.get(behind[0].output[0], [])
        alone = all(reader.name not in chosen for reader in behind)
        meeting = tuple(reader.name for reader in behind if alone or (reader.name in floats and reader.name not in chosen))
        if meeting:
            tensor, axes = end.output[0], len(weights[node.input[1]].dims) - 2
            pooling = onnx.helper.make_node(
                "MaxPool", [tensor], [f"{tensor}.boundary"], name=f"{tensor}.boundary.pool", kernel_shape=[1] * axes
            )
            found.append(Boundary(end.name, pooling, meeting))
    return found


def insert_poolings(proto: onnx.ModelProto, boundaries: Sequence[Boundary]) -> onnx.ModelProto:
    """Return the graph with the boundaries' MaxPools in it."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    behind = {boundary.behind: boundary.node for boundary in boundaries}
    through = {(reader, boundary.node.input[0]): boundary.node.output[0] for boundary in boundaries for reader in boundary.readers}
    nodes: list[NodeProto] = []
    for node in result.graph.node:
        node.input[:] = [through.get((node.name, name), name) for name in node.input]
        nodes += [node, behind[node.name]] if node.name in behind else [node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def remove_poolings(proto: onnx.ModelProto, boundaries: Sequence[Boundary]) -> list[list[str]]:
    """Remove the boundaries' MaxPools from a quantised graph, in place: what is behind one reads its Q/DQ pair.

    Returns:
        `[node, tensor]` for each reader: the node, and the dequantised tensor that it reads now.

    Raises:
        FlowlessError: ModelOpt gave a boundary no pair.
    """
    names = {boundary.node.name for boundary in boundaries}
    passed = {node.output[0]: node.input[0] for node in proto.graph.node if node.name in names}
    maker = {output: node.op_type for node in proto.graph.node for output in node.output}
    for boundary in boundaries:
        if maker.get(passed.get(boundary.node.output[0], "")) != "DequantizeLinear":
            raise FlowlessError(f"INT8: ModelOpt measured no scale for the result of {boundary.behind}; another version of it may.")
    kept = [node for node in proto.graph.node if node.name not in names]
    for node in kept:
        node.input[:] = [passed.get(name, name) for name in node.input]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    shapes = [item for item in proto.graph.value_info if item.name not in passed]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(shapes)
    return [[reader, passed[boundary.node.output[0]]] for boundary in boundaries for reader in boundary.readers]

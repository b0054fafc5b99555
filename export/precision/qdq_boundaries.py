"""Insert a Q/DQ pair where an INT8 convolution feeds a float operator; its scale is calibrated like any other.

ONNX Runtime has no INT8 convolution with a float output, so it needs the pair. TensorRT and OpenVINO have one; in their graphs the float
operator reads the convolution's output directly (`qdq.bypass_boundary_pairs`).

To get the pair, a 1 x 1 MaxPool, which changes nothing, is inserted after the convolution, so that ModelOpt calibrates the tensor; it is
removed afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto

from flowless.errors import FlowlessError
from flowless.export.precision.low_precision_nodes import float32_nodes, metadata_names


@dataclass(frozen=True)
class Boundary:
    """A convolution whose output a float operator reads."""

    behind: str
    """Name of the node whose output is quantised: the convolution, or its activation."""
    node: NodeProto
    """The MaxPool after it."""
    readers: tuple[str, ...]
    """Names of the nodes that read the output through the MaxPool."""


def find_boundaries(proto: onnx.ModelProto, chosen: Collection[str]) -> list[Boundary]:
    """Return the places where a graph needs a Q/DQ pair.

    Args:
        proto: The float32 graph.
        chosen: Names of the nodes whose inputs are quantised.

    Returns:
        One for each chosen convolution whose output is read by a node that is not quantised, or by no chosen node.
    """
    floats = metadata_names(proto, "unquantised") | set(float32_nodes(proto))
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
    """Remove the boundaries' MaxPools from a quantised graph, in place; their readers then read the Q/DQ pair.

    Returns:
        `[node, tensor]` for each reader: the node, and the dequantised tensor that it reads now.

    Raises:
        FlowlessError: ModelOpt did not quantise the input of a MaxPool.
    """
    names = {boundary.node.name for boundary in boundaries}
    passed = {node.output[0]: node.input[0] for node in proto.graph.node if node.name in names}
    maker = {output: node.op_type for node in proto.graph.node for output in node.output}
    for boundary in boundaries:
        if maker.get(passed.get(boundary.node.output[0], "")) != "DequantizeLinear":
            raise FlowlessError(
                f"INT8: ModelOpt did not calibrate the output of {boundary.behind}. Install another version of nvidia-modelopt, or build "
                "another precision."
            )
    kept = [node for node in proto.graph.node if node.name not in names]
    for node in kept:
        node.input[:] = [passed.get(name, name) for name in node.input]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    shapes = [item for item in proto.graph.value_info if item.name not in passed]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(shapes)
    return [[reader, passed[boundary.node.output[0]]] for boundary in boundaries for reader in boundary.readers]

"""Seams: where an INT8 convolution's result meets floating point, a pair, its scale measured like any other.

ONNX Runtime has no INT8 convolution whose result is a float, so there the result is rounded; TensorRT and OpenVINO have one,
and their graphs read the result itself (`quantisers.floats_unrounded`).

To begin with a seam is a pooling of single numbers. It changes nothing, but ModelOpt gives it a pair. Then it is taken out again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto

from flowless.errors import FlowlessError
from flowless.export.zones import kept_exact, named


@dataclass(frozen=True)
class Seam:
    """One seam."""

    behind: str
    """Name of the node whose result it passes on: the convolution, or its activation."""
    node: NodeProto
    readers: tuple[str, ...]
    """Names of the nodes that read the result through it."""


def seams_of(proto: onnx.ModelProto, chosen: Collection[str]) -> list[Seam]:
    """Return the seams that a graph needs.

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
            pooling = onnx.helper.make_node("MaxPool", [tensor], [f"{tensor}.seam"], name=f"{tensor}.seam.pool", kernel_shape=[1] * axes)
            found.append(Seam(end.name, pooling, meeting))
    return found


def with_seams(proto: onnx.ModelProto, seams: Sequence[Seam]) -> onnx.ModelProto:
    """Return the graph with its seams in it."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    behind = {seam.behind: seam.node for seam in seams}
    through = {(reader, seam.node.input[0]): seam.node.output[0] for seam in seams for reader in seam.readers}
    nodes: list[NodeProto] = []
    for node in result.graph.node:
        node.input[:] = [through.get((node.name, name), name) for name in node.input]
        nodes += [node, behind[node.name]] if node.name in behind else [node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def without_seams(proto: onnx.ModelProto, seams: Sequence[Seam]) -> list[list[str]]:
    """Take the seams' poolings out of a quantised graph, in place: what is behind one reads its pair.

    Returns:
        `[node, tensor]` for each reader: the node, and the dequantised tensor that it reads now.

    Raises:
        FlowlessError: A seam was given no pair.
    """
    names = {seam.node.name for seam in seams}
    passed = {node.output[0]: node.input[0] for node in proto.graph.node if node.name in names}
    maker = {output: node.op_type for node in proto.graph.node for output in node.output}
    for seam in seams:
        if maker.get(passed.get(seam.node.output[0], "")) != "DequantizeLinear":
            raise FlowlessError(f"INT8: ModelOpt measured no scale for the result of {seam.behind}; another version of it may.")
    kept = [node for node in proto.graph.node if node.name not in names]
    for node in kept:
        node.input[:] = [passed.get(name, name) for name in node.input]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    shapes = [item for item in proto.graph.value_info if item.name not in passed]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(shapes)
    return [[reader, passed[seam.node.output[0]]] for seam in seams for reader in seam.readers]

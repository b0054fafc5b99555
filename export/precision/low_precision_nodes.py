"""Which nodes of a graph run in lower precision: those of the backbone, and none before or after it.

Persistence of Appearance squares differences of pixels, normalisation subtracts nearly equal numbers, VAP's softmax and the
classifier separate close scores. Together these are a few per cent of the operations; they stay in float32.
So do the motion cues of the other systems, which divide small numbers by small numbers: their modules have the attribute `exact`, and the
exporter lists their nodes in the graph's metadata.

A transformer's backbone is its blocks (modules with the attribute `matrix_backbone`): their matrix products and the nodes between two
of them. Layer norm, softmax and the residual additions stay in float32.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Any

import onnx
from onnx import NodeProto

from flowless.export.graph.pa_function import DOMAIN

#: Operators that end a convolutional backbone: after the first of these a frame is one vector.
_ENDS = {"ReduceMean", "GlobalAveragePool", "Gemm", "MatMul", "Softmax"}
#: Matrix products; the second input is a weight, except in attention.
_PRODUCTS = {"MatMul", "Gemm"}
#: Operators of a transformer's blocks that stay in float32.
_FINE = {"LayerNormalization", "Softmax", "ReduceMean"}
#: Operators whose output is constant if their input is.
_CARRIERS = {"QuantizeLinear", "DequantizeLinear", "Cast", "Transpose"}


def backbone_nodes(proto: onnx.ModelProto, *, quantised: bool = False) -> set[str]:
    """Return the names of the nodes that run in lower precision.

    In a convolutional network these are the nodes from the first convolution to the last activation; in a transformer
    (`flowless.matrix_backbone` in the metadata) the matrix products of its blocks and the nodes between them.
    Every node must have a name. PA, inlined or not (see `pa_inline.py`), and the nodes under `flowless.exact` in the metadata are left
    out: the network after them counts as a network with a first convolution.

    Args:
        proto: The graph, in any precision.
        quantised: Also leave out what is not quantised to INT8: the nodes under `flowless.unquantised`, and attention's products of two
            activations.
    """
    exact = metadata_names(proto, "exact")
    nodes = [node for node in proto.graph.node if not is_pa(node) and node.name not in exact]
    blocks = metadata_names(proto, "matrix_backbone")
    constant = _constants(proto)
    inside = [node for node in nodes if node.name in blocks and not _is_fine(node, constant)]
    low = (_convolutional(nodes) - blocks) | {node.name for node in inside}
    if not quantised:
        return low
    attention = {node.name for node in inside if node.op_type in _PRODUCTS and node.input[1] not in constant}
    return low - metadata_names(proto, "unquantised") - attention


def weight_matmuls(proto: onnx.ModelProto) -> list[str]:
    """Return the names of the matrix products with a weight that run in lower precision."""
    low, constant = backbone_nodes(proto), _constants(proto)
    return [node.name for node in proto.graph.node if node.op_type in _PRODUCTS and node.name in low and node.input[1] in constant]


def _convolutional(nodes: list[NodeProto]) -> set[str]:
    """Return the names of the nodes from each first convolution to the last activation after it."""
    maker = {output: node for node in nodes for output in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    after = _closure(convolutions, lambda node: (reader for name in node.output for reader in readers.get(name, [])))
    before = _closure(convolutions, lambda node: (maker[name] for name in node.input if name in maker))
    ends = [node for node in nodes if node.name in after and node.op_type in _ENDS]
    past = _closure(ends, lambda node: (reader for name in node.output for reader in readers.get(name, [])))
    return {node.name for node in nodes if node.name in after and (node.name in before or node.name not in past)}


def _is_fine(node: NodeProto, constant: set[str]) -> bool:
    """Whether a node of a transformer's block stays in float32: an addition of two activations is a residual."""
    return node.op_type in _FINE or (node.op_type == "Add" and constant.isdisjoint(node.input))


def _constants(proto: onnx.ModelProto) -> set[str]:
    """Return the names of tensors that are constants, or computed from a constant by one of `_CARRIERS`."""
    known = {item.name for item in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" or (node.op_type in _CARRIERS and node.input[0] in known):
            known.update(node.output)
    return known


def float32_nodes(proto: onnx.ModelProto, *, quantised: bool = False) -> list[str]:
    """Return the names of the nodes that stay in float32; `quantised` as for `backbone_nodes`."""
    low = backbone_nodes(proto, quantised=quantised)
    return [node.name for node in proto.graph.node if node.name not in low]


def metadata_names(proto: onnx.ModelProto, key: str) -> set[str]:
    """Return the node names under a metadata key that the exporter wrote; an empty set for a graph of an older version."""
    return set(metadata_list(proto, key))


def metadata_list(proto: onnx.ModelProto, key: str) -> list[Any]:
    """Return the list under a metadata key; empty if the graph has no such key."""
    return json.loads(next((item.value for item in proto.metadata_props if item.key == f"flowless.{key}"), "[]"))


def is_pa(node: NodeProto) -> bool:
    """Whether a node is the PA op, or one of the nodes that `inline_pa` replaced it by."""
    return node.domain == DOMAIN or node.name.startswith("PA@")


def _closure(start: Iterable[NodeProto], neighbours) -> set[str]:
    """Return the names of all nodes that can be reached from `start`, itself included."""
    queue = deque(start)
    seen = {node.name for node in queue}
    while queue:
        for node in neighbours(queue.popleft()):
            if node.name not in seen:
                seen.add(node.name)
                queue.append(node)
    return seen

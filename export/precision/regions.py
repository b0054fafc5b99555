"""Which parts of a graph may lose precision: the backbone, and nothing before or after it.

Persistence of Appearance squares differences of pixels, normalisation subtracts nearly equal numbers, VAP's softmax and the
classifier decide between close scores. All of these together are a few hundredths of the arithmetic; they stay in float32.
So do the other systems' cues of motion, which divide small numbers by small ones: their modules say so (`exact`), and the
exporter writes it into the graph.

A transformer's backbone is its blocks, which the model marks (`matrix_backbone`): their matrix products and what lies between two
of them. Layer norm, softmax and the sums that run through all blocks stay in float32.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Any

import onnx
from onnx import NodeProto

from flowless.export.graph.pa_function import DOMAIN

#: What ends a backbone: from the first of these on, one vector stands for a frame.
_ENDS = {"ReduceMean", "GlobalAveragePool", "Gemm", "MatMul", "Softmax"}
#: Matrix products, whose second input is a weight but in attention.
_PRODUCTS = {"MatMul", "Gemm"}
#: What stays in float32 among a transformer's matrix products.
_FINE = {"LayerNormalization", "Softmax", "ReduceMean"}
#: What a constant may go through before it is used.
_CARRIERS = {"QuantizeLinear", "DequantizeLinear", "Cast", "Transpose"}


def backbone_nodes(proto: onnx.ModelProto, *, quantised: bool = False) -> set[str]:
    """Return the names of the nodes of each network that lose precision.

    Of a convolutional network these are the nodes from its first convolution to its last activation; of a transformer
    (`flowless.matrix_backbone` in the metadata) the matrix products of its blocks and what lies between them, besides.
    Every node must have a name. PA, its function and its inlined body (see `pa_sites`), and what the model itself keeps exact
    (`flowless.exact` in the metadata) do not count: what lies behind them starts anew.

    Args:
        proto: The graph, in any precision.
        quantised: Leave out what stays out of INT8 besides: what the model says (`flowless.unquantised`), and attention's
            products, neither of whose sides is a weight.
    """
    exact = named(proto, "exact")
    nodes = [node for node in proto.graph.node if not is_pa(node) and node.name not in exact]
    blocks = named(proto, "matrix_backbone")
    constant = _constants(proto)
    inside = [node for node in nodes if node.name in blocks and not _is_fine(node, constant)]
    low = (_convolutional(nodes) - blocks) | {node.name for node in inside}
    if not quantised:
        return low
    attention = {node.name for node in inside if node.op_type in _PRODUCTS and node.input[1] not in constant}
    return low - named(proto, "unquantised") - attention


def weight_products(proto: onnx.ModelProto) -> list[str]:
    """Return the names of the matrix products with a weight that lose precision."""
    low, constant = backbone_nodes(proto), _constants(proto)
    return [node.name for node in proto.graph.node if node.op_type in _PRODUCTS and node.name in low and node.input[1] in constant]


def _convolutional(nodes: list[NodeProto]) -> set[str]:
    """Return the names of the nodes from each first convolution to the last activation behind it."""
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
    """Whether a node of a transformer's blocks stays in float32: an addition of two activations is the sum through all blocks."""
    return node.op_type in _FINE or (node.op_type == "Add" and constant.isdisjoint(node.input))


def _constants(proto: onnx.ModelProto) -> set[str]:
    """Return the names of tensors that are constants, or only carry one."""
    known = {item.name for item in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" or (node.op_type in _CARRIERS and node.input[0] in known):
            known.update(node.output)
    return known


def kept_exact(proto: onnx.ModelProto, *, quantised: bool = False) -> list[str]:
    """Return the names of the nodes that stay in float32; `quantised` as for `backbone_nodes`."""
    low = backbone_nodes(proto, quantised=quantised)
    return [node.name for node in proto.graph.node if node.name not in low]


def named(proto: onnx.ModelProto, key: str) -> set[str]:
    """Return the node names that the exporter wrote into the metadata; none in a graph of an older version."""
    return set(noted(proto, key))


def noted(proto: onnx.ModelProto, key: str) -> list[Any]:
    """Return a list that the export wrote into the metadata, as `named` does for names; empty where it wrote none."""
    return json.loads(next((item.value for item in proto.metadata_props if item.key == f"flowless.{key}"), "[]"))


def is_pa(node: NodeProto) -> bool:
    """Whether a node is the PA op, or a part of its body that `pa_sites.spread` laid open."""
    return node.domain == DOMAIN or node.name.startswith("PA@")


def _closure(start: Iterable[NodeProto], neighbours) -> set[str]:
    """Return the names of `start` and of everything that its neighbours lead to."""
    queue = deque(start)
    seen = {node.name for node in queue}
    while queue:
        for node in neighbours(queue.popleft()):
            if node.name not in seen:
                seen.add(node.name)
                queue.append(node)
    return seen

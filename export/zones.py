"""Which parts of a graph may lose precision: the backbone, and nothing before or after it.

Persistence of Appearance squares differences of pixels, normalisation subtracts nearly equal numbers, VAP's softmax and the
classifier decide between close scores. All of these together are a few hundredths of the arithmetic; they stay in float32.
So do the other systems' cues of motion, which divide small numbers by small ones: their modules say so (`exact`), and the
exporter writes it into the graph.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable

import onnx
from onnx import NodeProto

from flowless.export.pa_function import DOMAIN

#: What ends a backbone: from the first of these on, one vector stands for a frame.
_ENDS = {"ReduceMean", "GlobalAveragePool", "Gemm", "MatMul", "Softmax"}


def backbone_nodes(proto: onnx.ModelProto, *, quantised: bool = False) -> set[str]:
    """Return the names of the nodes from each network's first convolution to its last activation.

    Every node must have a name. PA, its function and its inlined body (see `pa_sites`), and what the model itself keeps exact
    (`flowless.exact` in the metadata) do not count: what lies behind them starts anew.

    Args:
        proto: The graph, in any precision.
        quantised: Leave out what the model keeps out of INT8 besides (`flowless.unquantised`).
    """
    exact = _named(proto, "exact")
    nodes = [node for node in proto.graph.node if not is_pa(node) and node.name not in exact]
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
    low = {node.name for node in nodes if node.name in after and (node.name in before or node.name not in past)}
    return low - _named(proto, "unquantised") if quantised else low


def kept_exact(proto: onnx.ModelProto, *, quantised: bool = False) -> list[str]:
    """Return the names of the nodes that stay in float32; `quantised` as for `backbone_nodes`."""
    low = backbone_nodes(proto, quantised=quantised)
    return [node.name for node in proto.graph.node if node.name not in low]


def _named(proto: onnx.ModelProto, key: str) -> set[str]:
    """Return the node names that the exporter wrote into the metadata; none in a graph of an older version."""
    found = next((item.value for item in proto.metadata_props if item.key == f"flowless.{key}"), "[]")
    return set(json.loads(found))


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

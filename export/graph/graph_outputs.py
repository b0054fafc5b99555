"""Names of the inner tensors of an exported graph that `flowless explain` reads: the motion cue, each head's features, weights, scores.

The exporter's nodes name the modules that they come from; a written graph no longer does. So the tensor names are written into the graph's
metadata, under `flowless.outputs`; the graph itself is unchanged.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from flowless.errors import FlowlessError
from flowless.export.graph.pa_function import pa_nodes

if TYPE_CHECKING:
    import torch

#: Metadata key under which the exporter's nodes name their modules; removed before the graph is written.
_SCOPES = "pkg.torch.onnx.name_scopes"
#: The metadata's key, and that of earlier versions.
_KEYS = ("flowless.outputs", "flowless.insides")


@dataclass(frozen=True, kw_only=True)
class HeadOutputs:
    """The tensors of one head."""

    branch: str
    """Name of its branch, such as `pa`; empty for a model with a single branch."""
    features: str
    """Its input: float32 `[B, n, D]`."""
    scores: str
    """Its output: float32 `[B, classes]`."""
    weights: str | None
    """VAP's weights of the timescales, float32 `[B, N-1]`; None for a head without VAP."""
    layer: str
    """Name of the node that multiplies features by the last layer's weight."""


@dataclass(frozen=True, kw_only=True)
class GraphOutputs:
    """Names of a graph's inner tensors."""

    system: str
    """Kind of cue: `persistence`, `displacement`, `appearance`, `channelwise-motion`; empty for a model without a motion cue."""
    cue: str
    """The cue's tensor; empty for a model without a motion cue."""
    heads: tuple[HeadOutputs, ...]
    """The heads, in the order of the branches."""


def find_outputs(model: torch.nn.Module, proto: onnx.ModelProto) -> GraphOutputs | None:
    """Find the tensors in the exporter's graph, whose nodes still name their modules; None for a model that is not a recogniser."""
    wanted = getattr(model, "heads", ())
    if not wanted:
        return None
    paths = {id(module): path for path, module in model.named_modules()}
    nodes = [(node, scopes_of(node) or set()) for node in proto.graph.node]
    initial = {item.name for item in proto.graph.initializer}
    heads = []
    for path in (paths[id(head)] for head in wanted):
        inside = [node for node, scopes in nodes if path in scopes]
        entering = _entering(inside, initial)
        leaving = _leaving(inside, proto)
        layer = next((node for node, scopes in nodes if f"{path}.pred" in scopes and node.op_type in {"Gemm", "MatMul"}), None)
        if len(entering) != 1 or len(leaving) != 1 or layer is None:
            return None
        weights = next((node.output[0] for node in inside if node.op_type == "Softmax"), None)
        # The path is branches.NAME.head or NAME.head; head alone for a single network; an online form puts model. before it.
        branch = path.removeprefix("model.").rpartition(".")[0].rpartition(".")[2]
        heads.append(HeadOutputs(branch=branch, features=entering[0], scores=leaving[0], weights=weights, layer=layer.name))
    system, cue = _find_cue(model, proto, nodes)
    return GraphOutputs(system=system, cue=cue, heads=tuple(heads))


def read_outputs(proto: onnx.ModelProto, *, what: str) -> GraphOutputs:
    """Read the tensor names from a graph's metadata.

    Args:
        proto: A bundle's `model.onnx`.
        what: Its path, for the message.

    Raises:
        FlowlessError: The metadata is missing, or does not fit the graph.
    """
    text = next((item.value for item in proto.metadata_props if item.key in _KEYS), None)
    remedy = "Export the model again, or explain its checkpoint instead."
    if text is None:
        raise FlowlessError(f"{what}: its metadata does not name its motion cue and heads: an older flowless wrote it. {remedy}")
    try:
        document = json.loads(text)
        outputs = GraphOutputs(**{**document, "heads": tuple(HeadOutputs(**head) for head in document["heads"])})
    except (ValueError, TypeError, KeyError) as error:
        raise FlowlessError(f"{what}: its metadata flowless.outputs cannot be read ({error}). {remedy}") from error
    made = {name for node in proto.graph.node for name in node.output} | {item.name for item in proto.graph.input}
    missing = [name for name in tensor_names(outputs) if name not in made]
    missing += [head.layer for head in outputs.heads if all(node.name != head.layer for node in proto.graph.node)]
    if missing:
        raise FlowlessError(f"{what}: has no {missing[0]!r}, which its metadata names. {remedy}")
    return outputs


def tensor_names(outputs: GraphOutputs) -> list[str]:
    """Return the names of all tensors, each once."""
    found = [name for head in outputs.heads for name in (head.features, head.scores, head.weights or "")]
    return list(dict.fromkeys(name for name in (outputs.cue, *found) if name))


def opened(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return the part of a graph that computes these tensors, with the tensors as its outputs."""
    maker = {output: node for node in proto.graph.node for output in node.output}
    needed: set[str] = set()
    queue = list(names)
    while queue:
        node = maker.get(queue.pop())
        if node is not None and node.output[0] not in needed:
            needed.add(node.output[0])
            queue.extend(node.input)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:], result.graph.output[:], result.graph.value_info[:]
    result.graph.node.extend(node for node in proto.graph.node if node.output[0] in needed)
    # No type or shape: ONNX Runtime infers them.
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    read = {name for node in result.graph.node for name in node.input}
    kept = [item for item in proto.graph.initializer if item.name in read]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result


def last_layer(proto: onnx.ModelProto, head: HeadOutputs) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight `[D, classes]` and the bias `[classes]` of a head's last layer, float32."""
    tensors = {item.name: item for item in proto.graph.initializer}
    node = next(node for node in proto.graph.node if node.name == head.layer)
    weight = numpy_helper.to_array(tensors[node.input[1]])
    if any(item.name == "transB" and item.i for item in node.attribute):
        weight = weight.T
    # The exporter omits a bias of zeros; a MatMul has its bias in an Add.
    others = node.input[2:] if node.op_type == "Gemm" else _added(proto, node.output[0])
    bias = next((numpy_helper.to_array(tensors[name]) for name in others if name in tensors), None)
    return weight, np.zeros(weight.shape[1], weight.dtype) if bias is None else bias


def _added(proto: onnx.ModelProto, name: str) -> list[str]:
    """Return the tensors that are added to a tensor."""
    return [other for node in proto.graph.node if node.op_type == "Add" and name in node.input for other in node.input if other != name]


def _find_cue(model: torch.nn.Module, proto: onnx.ModelProto, nodes: list[tuple[NodeProto, set[str]]]) -> tuple[str, str]:
    """Return the kind of the cue and its tensor; two empty strings for a model without one."""
    from flowless.train.models.layers.displacement import Displacement
    from flowless.train.models.layers.stm_block import ChannelwiseMotion
    from flowless.train.models.layers.temporal_projection import PixelwiseTemporalProjection

    for path, module in model.named_modules():
        if isinstance(module, Displacement | PixelwiseTemporalProjection):
            system = "displacement" if isinstance(module, Displacement) else "appearance"
            return system, _leaving([node for node, scopes in nodes if path in scopes], proto)[0]
        if isinstance(module, ChannelwiseMotion):
            return "channelwise-motion", next(node.input[0] for node, scopes in nodes if f"{path}.restore" in scopes)
    # Branches run in order, so the last PA node is the PA branch's. PA of deeper layers ends in the only Sqrt that belongs to no module.
    maps = pa_nodes(proto) or [node for node, scopes in nodes if node.op_type == "Sqrt" and not scopes]
    return ("persistence", maps[-1].output[0]) if maps else ("", "")


def scopes_of(node: NodeProto) -> set[str] | None:
    """Return the paths of the modules that a node comes from; None for a node that the exporter inserted."""
    text = next((item.value for item in node.metadata_props if item.key == _SCOPES), None)
    return {scope for scope in ast.literal_eval(text)[:-1] if scope} if text else None


def _entering(inside: list[NodeProto], initial: set[str]) -> list[str]:
    """Return the tensors that these nodes read and other nodes compute."""
    made = {name for node in inside for name in node.output}
    return list(dict.fromkeys(name for node in inside for name in node.input if name and name not in made and name not in initial))


def _leaving(inside: list[NodeProto], proto: onnx.ModelProto) -> list[str]:
    """Return the tensors of these nodes that other nodes read, or that are outputs of the graph."""
    made = [name for node in inside for name in node.output]
    made_here = set(made)
    read = {name for node in proto.graph.node if made_here.isdisjoint(node.output) for name in node.input}
    read |= {item.name for item in proto.graph.output}
    return [name for name in made if name in read]

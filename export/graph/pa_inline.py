"""Laying PA's body open for tools that know no functions, and closing it again afterwards."""

from __future__ import annotations

import onnx
from onnx import NodeProto

from flowless.errors import FlowlessError
from flowless.export.graph.export_graph import inlined
from flowless.export.graph.pa_function import pa_nodes


def spread(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with each PA node replaced by its body, whose nodes are named `PA@SITE@...`.

    A tool may then change everything else, and `gather` finds the bodies by their nodes' names.
    """
    laid = onnx.ModelProto()
    laid.CopyFrom(proto)
    bodies = {function.name: function for function in laid.functions}
    del laid.functions[:]
    for site, node in enumerate(pa_nodes(laid)):
        # A body of its own for each site: the names then tell the sites apart.
        body = onnx.FunctionProto()
        body.CopyFrom(bodies[node.op_type])
        body.name = node.op_type = f"{node.op_type}At{site}"
        for place, part in enumerate(body.node):
            part.name = f"PA@{site}@{place}"
        laid.functions.append(body)
    return inlined(laid)


def gather(changed: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Return the changed graph with each body closed into the PA node of the original, function and all.

    Args:
        changed: What a tool made of `spread(original)`; inside the bodies it must have left everything as it was.
        original: The graph with PA nodes.

    Raises:
        FlowlessError: A body was changed, so that no single node stands for it.
    """
    result = onnx.ModelProto()
    result.CopyFrom(changed)
    nodes = list(result.graph.node)
    for site, node in enumerate(pa_nodes(original)):
        body = [part for part in nodes if part.name.startswith(f"PA@{site}@")]
        closed = NodeProto()
        closed.CopyFrom(node)
        closed.input[0] = _frames_of(body, {item.name for item in result.graph.initializer})
        if node.output[0] not in {name for part in body for name in part.output}:
            raise FlowlessError(
                f"The conversion renamed the output of PA node {node.name!r}; this ModelOpt does not fit this version of flowless."
            )
        nodes.insert(nodes.index(body[-1]), closed)
        _restore_constants(result, original, closed.input[1:])
        nodes = [part for part in nodes if not any(part is item for item in body)]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    _drop_unread(result)
    if pa_nodes(original):
        _restore_functions(result, original)
    return result


def _frames_of(body: list[NodeProto], constants: set[str]) -> str:
    """Return the one tensor, not a constant, that a body reads from outside."""
    made = {name for part in body for name in part.output}
    outside = {name for part in body for name in part.input if name and name not in made | constants}
    if len(outside) != 1:
        raise FlowlessError(f"The conversion cut into a PA node's body (it now reads {sorted(outside)}); report this graph.")
    return outside.pop()


def _restore_functions(proto: onnx.ModelProto, original: onnx.ModelProto) -> None:
    versions = {item.domain: item.version for item in proto.opset_import}
    for item in original.opset_import:
        if item.domain not in versions:
            proto.opset_import.add(domain=item.domain, version=item.version)
    proto.functions.extend(original.functions)
    for function in proto.functions:
        for item in function.opset_import:
            item.version = versions.get(item.domain, item.version)  # bf16 convolutions raise the whole graph to opset 22


def _restore_constants(proto: onnx.ModelProto, original: onnx.ModelProto, names) -> None:
    """Put a closed node's constants back where the tool folded or renamed them."""
    there = {item.name for item in proto.graph.initializer}
    proto.graph.initializer.extend(item for item in original.graph.initializer if item.name in set(names) - there)


def _drop_unread(proto: onnx.ModelProto) -> None:
    """Forget constants that only a closed body read."""
    read = {name for node in proto.graph.node for name in node.input} | {item.name for item in proto.graph.output}
    kept = [item for item in proto.graph.initializer if item.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)

"""Inline the PA function for tools that do not support ONNX functions, and fold it back afterwards."""

from __future__ import annotations

import onnx
from onnx import NodeProto

from flowless.errors import FlowlessError
from flowless.export.graph.export_graph import inlined
from flowless.export.graph.pa_function import pa_nodes


def inline_pa(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with each PA node replaced by the function's nodes, named `PA@INDEX@...`.

    A tool may then change everything else; `fold_pa` finds the inlined nodes by their names.
    """
    flat = onnx.ModelProto()
    flat.CopyFrom(proto)
    bodies = {function.name: function for function in flat.functions}
    del flat.functions[:]
    for index, node in enumerate(pa_nodes(flat)):
        # One copy of the function per PA node, so that the names distinguish the nodes.
        body = onnx.FunctionProto()
        body.CopyFrom(bodies[node.op_type])
        body.name = node.op_type = f"{node.op_type}At{index}"
        for place, part in enumerate(body.node):
            part.name = f"PA@{index}@{place}"
        flat.functions.append(body)
    return inlined(flat)


def fold_pa(changed: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Return the changed graph with each inlined PA function replaced by its node, and the function restored.

    Args:
        changed: A tool's result for `inline_pa(original)`; it must not have changed the inlined nodes.
        original: The graph with PA nodes.

    Raises:
        FlowlessError: The inlined nodes were changed, so that the PA node is no longer equivalent to them.
    """
    result = onnx.ModelProto()
    result.CopyFrom(changed)
    nodes = list(result.graph.node)
    for index, node in enumerate(pa_nodes(original)):
        body = [part for part in nodes if part.name.startswith(f"PA@{index}@")]
        folded = NodeProto()
        folded.CopyFrom(node)
        folded.input[0] = _frames_of(body, {item.name for item in result.graph.initializer})
        if node.output[0] not in {name for part in body for name in part.output}:
            raise FlowlessError(
                f"The conversion renamed the output of PA node {node.name!r}; this ModelOpt does not fit this version of flowless."
            )
        nodes.insert(nodes.index(body[-1]), folded)
        _restore_constants(result, original, folded.input[1:])
        nodes = [part for part in nodes if not any(part is item for item in body)]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    _drop_unread(result)
    if pa_nodes(original):
        _restore_functions(result, original)
    return result


def _frames_of(body: list[NodeProto], constants: set[str]) -> str:
    """Return the one tensor, other than constants, that the inlined nodes read from outside."""
    made = {name for part in body for name in part.output}
    outside = {name for part in body for name in part.input if name and name not in made | constants}
    if len(outside) != 1:
        raise FlowlessError(f"The conversion changed the inlined nodes of a PA node (they now read {sorted(outside)}); report this graph.")
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
    """Restore a PA node's constants if the tool folded or renamed them."""
    there = {item.name for item in proto.graph.initializer}
    proto.graph.initializer.extend(item for item in original.graph.initializer if item.name in set(names) - there)


def _drop_unread(proto: onnx.ModelProto) -> None:
    """Remove constants that only the inlined nodes read."""
    read = {name for node in proto.graph.node for name in node.input} | {item.name for item in proto.graph.output}
    kept = [item for item in proto.graph.initializer if item.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)

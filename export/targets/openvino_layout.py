"""Differences before layout: a rewrite of the inlined graph that OpenVINO is the faster for."""

from __future__ import annotations

import onnx
from onnx import NodeProto, helper


def differences_first(proto: onnx.ModelProto) -> int:
    """Turn "transpose the frames, then subtract neighbours" into "subtract, then transpose the differences", in place.

    The numbers are the same. There is one difference fewer than frames, and OpenVINO merges the transposition that is left
    with its own reordering before the convolution.

    Args:
        proto: The graph with its functions inlined; PA's differences are slices of one transposed tensor.

    Returns:
        How many differences were rewritten.
    """
    nodes = proto.graph.node
    maker = {output: node for node in nodes for output in node.output}
    rewritten = 0
    for difference in [node for node in nodes if node.op_type == "Sub" and node.name.startswith("PA_difference")]:
        # By PA's body: two slices along time, of the frames, which nothing else reads.
        slices = [maker[name] for name in difference.input]
        transpose = _common_transpose(slices, maker)
        if transpose is None:
            continue
        for part in slices:
            part.input[0] = transpose.input[0]
        result = difference.output[0]
        difference.output[0] = f"{result}_before_layout"
        moved = helper.make_node("Transpose", [difference.output[0]], [result], name=f"{difference.name}_layout")
        moved.attribute.append(next(item for item in transpose.attribute if item.name == "perm"))
        nodes.insert(list(nodes).index(difference) + 1, moved)
        rewritten += 1
    return rewritten


def _common_transpose(slices: list[NodeProto], maker: dict[str, NodeProto]) -> NodeProto | None:
    """Return the transposition that both slices read, where it leaves the axis of time, the fourth last, in its place."""
    sources = {part.input[0] for part in slices}
    transpose = maker.get(sources.pop()) if len(sources) == 1 else None
    if transpose is None or transpose.op_type != "Transpose":
        return None
    perm = next((list(item.ints) for item in transpose.attribute if item.name == "perm"), [])
    time = len(perm) - 4
    return transpose if time >= 0 and perm[time] == time else None

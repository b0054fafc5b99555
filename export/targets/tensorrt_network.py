"""The network that TensorRT's or TensorRT-RTX's ONNX parser makes of a graph; it is made without a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import onnx

from flowless.engines.backends.tensorrt_process import ErrorMessages, TensorRtProcess
from flowless.errors import FlowlessError

#: The text in a failed assertion of the parser: `creator && "Plugin not found, ..."`.
_QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True, kw_only=True)
class ParsedGraph:
    """A network with what it depends on: the parser owns its weights, and the builder must outlive both."""

    builder: Any
    """`Builder`, which builds the engine."""
    network: Any
    """`INetworkDefinition`, strongly typed."""
    parser: Any
    """`OnnxParser`; keep it until the engine is built."""


def parse_graph(process: TensorRtProcess, proto: onnx.ModelProto) -> ParsedGraph:
    """Parse a graph into a strongly typed network, whose precisions are those of the graph.

    Raises:
        FlowlessError: The library refuses the graph; the message names the operator and its node.
    """
    trt = process.trt
    with process.errors() as errors:
        builder = trt.Builder(process.logger)
        # From TensorRT 11 on every network is strongly typed, and the flag may be gone.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, process.logger)
        if not parser.parse(proto.SerializeToString()):
            raise FlowlessError(f"{process.name} does not take the graph: {_reason(parser, errors)}. Build another target.")
    return ParsedGraph(builder=builder, network=network, parser=parser)


def _reason(parser: Any, errors: ErrorMessages) -> str:
    """Return the operator and node that the parser refused, and why."""
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    first = next((error for error in found if error.node_operator()), None)
    if first is None:
        return str(errors)
    # A node in a function's body may have no name; the stack then names the node that calls the function, as "name (operator)".
    callers = [caller.partition(" (")[0] for caller in first.local_function_stack()]
    node = first.node_name() or next(iter(callers), "")
    quoted = _QUOTED.search(first.desc())
    why = quoted[1] if quoted else first.desc()
    return f"operator {first.node_operator()} of node {node!r}: {' '.join(why.split()).rstrip('.?')}"

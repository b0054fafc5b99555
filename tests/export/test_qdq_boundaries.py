"""Q/DQ boundaries in small graphs: where a pair is needed, and that the inserted MaxPool leaves only a pair."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowless.errors import FlowlessError
from flowless.export.precision.qdq import bypass_boundary_pairs
from flowless.export.precision.qdq_boundaries import find_boundaries, insert_poolings, remove_poolings


def graph(*nodes: onnx.NodeProto, unquantised: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Return a graph from `x` to `y`, every convolution's weight being `w`."""
    made = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 5, 5])],
        [numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "w")],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    proto.metadata_props.add(key="flowless.unquantised", value=json.dumps(unquantised))
    return proto


def node(kind: str, inputs: str, output: str) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"to {output}")


FIRST, LAST = node("Conv", "x w", "a"), node("Conv", "m w", "y")


def test_a_float_operator_after_an_int8_convolution_needs_a_pair() -> None:
    chosen = {"to a", "to y"}
    # convolution, activation, an unquantised module, convolution
    proto = graph(FIRST, node("Relu", "a", "r"), node("Neg", "r", "m"), LAST, unquantised=("to m",))
    (boundary,) = find_boundaries(proto, chosen)
    assert (boundary.behind, boundary.readers, boundary.node.input[0]) == ("to r", ("to m",), "r")
    # With a quantised reader beside it, only the float reader reads through the MaxPool.
    proto = graph(FIRST, node("Neg", "a", "n"), node("Add", "a n", "m"), LAST, unquantised=("to n",))
    (boundary,) = find_boundaries(proto, {*chosen, "to m"})
    assert (boundary.behind, boundary.readers) == ("to a", ("to n",))
    pooled = insert_poolings(proto, [boundary])
    onnx.checker.check_model(pooled, full_check=True)
    assert [list(one.input) for one in pooled.graph.node if one.name in {"to n", "to m"}] == [["a.boundary"], ["a", "n"]]


def test_a_convolution_that_no_quantised_node_reads_needs_a_pair() -> None:
    # No reader is listed as unquantised, but none is quantised either.
    proto = graph(FIRST, node("Neg", "a", "n"), node("Add", "a n", "m"), LAST)
    (boundary,) = find_boundaries(proto, {"to a", "to y"})
    assert (boundary.behind, boundary.readers) == ("to a", ("to n", "to m"))
    assert not find_boundaries(proto, {"to a", "to m", "to y"}), "a quantised reader has a pair, which all readers share"


def test_quantised_readers_need_no_boundary() -> None:
    assert not find_boundaries(graph(FIRST, node("Relu", "a", "m"), LAST), {"to a", "to y"})
    assert not find_boundaries(graph(FIRST, node("Neg", "a", "m"), LAST, unquantised=("to m",)), set())


def quantised(proto: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """Return the graph with a pair after a tensor that all readers read, as ModelOpt inserts it."""
    scale, zero = numpy_helper.from_array(np.array(0.5, np.float32), "s"), numpy_helper.from_array(np.array(0, np.int8), "z")
    proto.graph.initializer.extend([scale, zero])
    place = next(place for place, one in enumerate(proto.graph.node) if tensor in one.output)
    for one in proto.graph.node[place + 1 :]:
        one.input[:] = ["dq" if name == tensor else name for name in one.input]
    pair = [node("QuantizeLinear", f"{tensor} s z", "q"), node("DequantizeLinear", "q s z", "dq")]
    nodes = [*proto.graph.node[: place + 1], *pair, *proto.graph.node[place + 1 :]]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def test_the_maxpool_leaves_a_pair_that_other_targets_bypass() -> None:
    proto = graph(FIRST, node("Neg", "a", "n"), node("Add", "a n", "m"), LAST, unquantised=("to n",))
    boundaries = find_boundaries(proto, {"to a", "to m", "to y"})
    made = quantised(insert_poolings(proto, boundaries), "a")
    meeting = remove_poolings(made, boundaries)
    assert meeting == [["to n", "dq"]]
    made.metadata_props.add(key="flowless.qdq_boundaries", value=json.dumps(meeting))
    onnx.checker.check_model(made, full_check=True)
    read = {one.name: list(one.input) for one in made.graph.node}
    assert (read["to n"], read["to m"]) == (["dq"], ["dq", "n"])
    past = {one.name: list(one.input) for one in bypass_boundary_pairs(made).graph.node}
    assert (past["to n"], past["to m"]) == (["a"], ["dq", "n"]), "only the float operator bypasses the pair"


def test_a_boundary_without_a_pair_is_refused() -> None:
    proto = graph(FIRST, node("Neg", "a", "m"), LAST, unquantised=("to m",))
    boundaries = find_boundaries(proto, {"to a", "to y"})
    with pytest.raises(FlowlessError, match="did not calibrate the output of to a"):
        remove_poolings(insert_poolings(proto, boundaries), boundaries)

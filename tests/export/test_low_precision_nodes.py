"""What a graph keeps in float32: what its model marks, besides what is kept in every model (test_precision.py)."""

from __future__ import annotations

from collections import Counter

import pytest

from flowless.export.graph.export_graph import read_graph
from flowless.export.precision.low_precision_nodes import backbone_nodes, float32_nodes, weight_matmuls

pytestmark = pytest.mark.slow


def convolutions(proto, names):
    return [node for node in proto.graph.node if node.op_type == "Conv" and node.name in set(names)]


def test_dynamic_appearance_is_computed_exactly(learnt):
    proto = read_graph(learnt("da-tsm-r18") / "model.onnx")
    exact = convolutions(proto, float32_nodes(proto))
    assert len(exact) == 5, "PWTP's: one that describes, four of its network"
    assert {tuple(item.ints) for node in exact for item in node.attribute if item.name == "kernel_shape"} >= {(9, 9)}
    assert len(convolutions(proto, backbone_nodes(proto))) == 13, "the first, two in each block, four shortcuts"
    assert not [node.name for node in proto.graph.node if node.op_type == "Div" and node.name in backbone_nodes(proto)]


def test_stm_modules_stay_out_of_int8_alone(learnt):
    proto = read_graph(learnt("stm-r18") / "model.onnx")
    assert len(convolutions(proto, backbone_nodes(proto))) == 13 + 3 * 4, "4 motion modules of three convolutions lose precision too"
    assert len(convolutions(proto, backbone_nodes(proto, quantised=True))) == 13


def test_a_transformer_loses_precision_in_its_products(learnt):
    proto = read_graph(learnt("da-vit-b") / "model.onnx")
    kinds = Counter(node.op_type for node in proto.graph.node if node.name in backbone_nodes(proto))
    assert kinds["MatMul"] == 2 * 6, "each block's four layers, and attention's two products"
    assert len(weight_matmuls(proto)) == 2 * 4
    assert (kinds["Conv"], kinds["Gelu"]) == (1, 2)
    assert not {"LayerNormalization", "Softmax", "ReduceMean"} & set(kinds)
    added = [node for node in proto.graph.node if node.op_type == "Add" and node.name in backbone_nodes(proto)]
    assert len(added) == 2 * 4 + 1, "biases and the positions, not the sums through all blocks"
    quantised = backbone_nodes(proto, quantised=True)
    assert [node.name for node in proto.graph.node if node.op_type == "MatMul" and node.name in quantised] == weight_matmuls(proto)


def test_x3d_keeps_channelwise_convolutions_out_of_int8(learnt):
    """Their batch norms are folded into them: the mark is found by the weight, not by the batch norm that the node is named after."""
    proto = read_graph(learnt("da-x3d-xs") / "model.onnx")
    quantised = convolutions(proto, backbone_nodes(proto, quantised=True))
    assert len(convolutions(proto, backbone_nodes(proto))) == 8 * 3 + 4 * 2 + 4 + 2 + 1, (
        "in each block three, in every second two more, shortcuts, stem, the last"
    )
    assert len(quantised) == 2 * 8 + 4 + 1, "two in each block, four shortcuts, the last"
    assert {item.i for node in quantised for item in node.attribute if item.name == "group"} == {1}

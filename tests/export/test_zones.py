"""What a graph keeps in float32: what its model marks, besides what is kept in every model (test_precision.py)."""

from __future__ import annotations

import pytest

from flowless.export.graph import read_graph
from flowless.export.zones import backbone_nodes, kept_exact

pytestmark = pytest.mark.slow


def convolutions(proto, names):
    return [node for node in proto.graph.node if node.op_type == "Conv" and node.name in set(names)]


def test_dynamic_appearance_is_computed_exactly(learnt):
    proto = read_graph(learnt("da-tsm-r18") / "model.onnx")
    exact = convolutions(proto, kept_exact(proto))
    assert len(exact) == 5, "PWTP's: one that describes, four of its network"
    assert {tuple(item.ints) for node in exact for item in node.attribute if item.name == "kernel_shape"} >= {(9, 9)}
    assert len(convolutions(proto, backbone_nodes(proto))) == 21, "a ResNet-18 has 21, its shortcuts counted"
    assert not [node.name for node in proto.graph.node if node.op_type == "Div" and node.name in backbone_nodes(proto)]


def test_stm_modules_stay_out_of_int8_alone(learnt):
    proto = read_graph(learnt("stm-r18") / "model.onnx")
    assert len(convolutions(proto, backbone_nodes(proto))) == 21 + 3 * 8, "8 motion modules of three convolutions lose precision too"
    assert len(convolutions(proto, backbone_nodes(proto, quantised=True))) == 21

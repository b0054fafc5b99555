"""The disentangling recogniser as one graph: no giant, and what stays exact in it. (Its scores: test_parity_table.py.)"""

from __future__ import annotations

from dataclasses import replace

import pytest
from onnx import numpy_helper

from flowless.engines.manifest import read_manifest
from flowless.export.graph import read_graph
from flowless.export.graphs import precise_graph
from flowless.export.quantisers import activation_pairs
from flowless.export.zones import backbone_nodes, kept_exact


@pytest.mark.slow
def test_one_graph_for_every_target(learnt) -> None:
    manifest = read_manifest(learnt("disentangling-bninception"))
    # The gate is a thousandth of the spread; what is left here is the order of additions.
    assert manifest.parity["max_abs_diff"] < 1e-4 * manifest.parity["spread"]
    proto = read_graph(manifest.path_of(manifest.graph))
    kinds = [node.op_type for node in proto.graph.node]
    # Displacement maps once for both branches, as two products and a softmax; (2 D + 1)^2 shifted products would be hundreds.
    assert (kinds.count("Softmax"), kinds.count("GridSample")) == (1, 1)
    assert len([kind for kind in kinds if kind not in {"Conv", "Relu", "Concat", "MaxPool", "AveragePool", "Pad"}]) < 100
    assert not [kind for kind in kinds if kind.startswith(("Gather", "Scatter"))]
    # Three networks of 69 convolutions, and the one that they share, of which displacement is measured.
    low, quantised = ([node for node in proto.graph.node if node.name in backbone_nodes(proto, quantised=kind)] for kind in (False, True))
    convolutions = [node for node in low if node.op_type == "Conv"]
    assert len(convolutions) == 3 * 68 + 2 + 1
    assert [node for node in convolutions if node not in quantised] == convolutions[:1]
    exact = set(kept_exact(proto))
    assert {node.name for node in proto.graph.node if node.op_type in {"MatMul", "Softmax", "GridSample"}} <= exact


@pytest.mark.slow
def test_int8_joins_paths_on_one_scale_and_spares_what_is_exact(learnt, calibration) -> None:
    manifest = read_manifest(learnt("disentangling-bninception"))
    exact = set(kept_exact(read_graph(manifest.path_of(manifest.graph))))
    proto = precise_graph(manifest, "int8", replace(calibration, spec=manifest.spec, used=[], skipped=[])).proto
    pairs = {pair.dequantise.output[0]: pair for pair in activation_pairs(proto)}
    values = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    read = {pair.quantise.input[0]: pair for pair in pairs.values()}
    joins = [node for node in proto.graph.node if node.op_type == "Concat" and set(node.input) <= set(pairs)]
    assert len(joins) == 3 * 10
    for node in (node for node in joins if node.output[0] in read):
        scales = {float(values[pair.quantise.input[1]]) for pair in (*(pairs[name] for name in node.input), read[node.output[0]])}
        assert len(scales) == 1, node.name
    # What measures displacement reads the shared features as they are, not as the networks behind them are given them.
    assert not [node.name for node in proto.graph.node if node.name in exact and pairs.keys() & set(node.input)]
    first = next(node for node in proto.graph.node if node.op_type == "Conv")
    assert first.input[0] not in pairs

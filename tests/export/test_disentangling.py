"""The disentangling recogniser as one graph: no giant, and what stays exact in it. (Its scores: test_parity_table.py.)"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from flowless.engines.bundle.manifest import read_manifest
from flowless.export.graph.export_graph import read_graph
from flowless.export.precision.graph_cache import precise_graph
from flowless.export.precision.low_precision_nodes import backbone_nodes, float32_nodes
from flowless.export.precision.qdq import activation_pairs
from flowless.pipeline.clip.spec import ClipSpec


def test_late_pooling_alone(tmp_path: Path) -> None:
    """One stage of the appearance network, and the frames joined behind it: what a whole export with late pooling has besides."""
    import onnxruntime
    import torch

    from flowless.engines.backends.openvino_core import openvino_core
    from flowless.export.graph.export_graph import export_onnx
    from flowless.train.models.disentangling import AppearanceNetwork

    class Appearance(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = AppearanceNetwork(width=0.125, pooling="late")
            del self.network.stages[1:]

        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            pixels = clip.float().flatten(0, 2).movedim(-1, 1)
            return self.network.encode(pixels[:, :1].expand(-1, 64, -1, -1) / 255, frames=4)

    spec = ClipSpec(segments=2, frames_per_segment=4, height=16, width=17, short_side=17)
    torch.manual_seed(0)
    module, path = Appearance().eval(), tmp_path / "late.onnx"
    proto = export_onnx(module, path, spec=spec, labels=[], name="late", versions={})
    assert [node.op_type for node in proto.graph.node].count("ReduceMax") == 1
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    core = openvino_core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in (1, 3):
        clips = torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8)
        with torch.inference_mode():
            wanted = module(clips).numpy()
        assert wanted.shape == (2 * batch, 24)
        assert wanted.std() > 0.01
        for seen in (session.run(None, {"clip": clips.numpy()})[0], compiled({"clip": clips.numpy()})[0]):
            np.testing.assert_allclose(np.asarray(seen), wanted, atol=1e-5)


# In the process that test_parity_table.py has the same bundle in: another would wait for it.
TABLE = pytest.mark.xdist_group("table-disentangling-bninception")


@TABLE
@pytest.mark.slow
def test_one_graph_for_every_target(learnt, assert_bundle_explains_alike) -> None:
    from flowless.train.checkpoints import load_checkpoint

    bundle = learnt("disentangling-bninception")
    manifest = read_manifest(bundle)
    # The gate is a thousandth of the spread; what is left here is the order of additions.
    assert manifest.parity["max_abs_diff"] < 1e-4 * manifest.parity["spread"]
    proto = read_graph(manifest.path_of(manifest.graph))
    kinds = [node.op_type for node in proto.graph.node]
    # Displacement maps once for both branches, as two products and a softmax; (2 D + 1)^2 shifted products would be hundreds.
    assert (kinds.count("Softmax"), kinds.count("GridSample")) == (1, 1)
    assert len([kind for kind in kinds if kind not in {"Conv", "Relu", "Concat", "MaxPool", "AveragePool", "Pad"}]) < 100
    assert not [kind for kind in kinds if kind.startswith(("Gather", "Scatter"))]
    # Three networks of 41 convolutions, and the one that they share, of which displacement is measured.
    low, quantised = ([node for node in proto.graph.node if node.name in backbone_nodes(proto, quantised=kind)] for kind in (False, True))
    convolutions = [node for node in low if node.op_type == "Conv"]
    assert len(convolutions) == 3 * 40 + 2 + 1
    assert [node for node in convolutions if node not in quantised] == convolutions[:1]
    exact = set(float32_nodes(proto))
    assert {node.name for node in proto.graph.node if node.op_type in {"MatMul", "Softmax", "GridSample"}} <= exact
    assert_bundle_explains_alike(load_checkpoint(bundle.with_suffix(".safetensors")), bundle)


@TABLE
@pytest.mark.slow
def test_int8_joins_paths_on_one_scale_and_spares_what_is_exact(learnt, calibration) -> None:
    manifest = read_manifest(learnt("disentangling-bninception"))
    exact = set(float32_nodes(read_graph(manifest.path_of(manifest.graph))))
    proto = precise_graph(manifest, "int8", replace(calibration, spec=manifest.spec, used=[], skipped=[])).proto
    pairs = {pair.dequantise.output[0]: pair for pair in activation_pairs(proto)}
    values = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    read = {pair.quantise.input[0]: pair for pair in pairs.values()}
    joins = [node for node in proto.graph.node if node.op_type == "Concat" and set(node.input) <= set(pairs)]
    assert len(joins) == 3 * 6
    for node in (node for node in joins if node.output[0] in read):
        scales = {float(values[pair.quantise.input[1]]) for pair in (*(pairs[name] for name in node.input), read[node.output[0]])}
        assert len(scales) == 1, node.name
    # What measures displacement reads the shared features as they are, not as the networks behind them are given them.
    assert not [node.name for node in proto.graph.node if node.name in exact and pairs.keys() & set(node.input)]
    first = next(node for node in proto.graph.node if node.op_type == "Conv")
    assert first.input[0] not in pairs

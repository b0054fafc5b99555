"""The disentangling recogniser as one graph: no giant, and the same scores in every runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from flowless.pipeline.spec import ClipSpec


def checkpoint(height: int, **options: Any):
    """Return a small model as if trained, whose maps have sides that are no whole number of blocks."""
    import torch

    from flowless.train.checkpoints import Checkpoint
    from flowless.train.models import build_model

    spec = ClipSpec(segments=2, frames_per_segment=4, height=height, width=height + 1, short_side=56)
    torch.manual_seed(7)
    model = build_model("disentangling-bninception", classes=5, spec=spec, width=0.25, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, 0, 0.3)
    name = "disentangling-bninception"
    return Checkpoint(model=model, name=name, spec=spec, labels=tuple("abcde"), recipe={}, versions={}, metrics={})


def test_late_pooling_alone(tmp_path: Path) -> None:
    """One stage of the appearance network, and the frames joined behind it: what a whole export with late pooling has besides."""
    import onnxruntime
    import openvino
    import torch

    from flowless.export.graph import export_onnx
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
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in (1, 3):
        clips = torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8)
        with torch.inference_mode():
            wanted = module(clips).numpy()
        assert wanted.shape == (2 * batch, 24)
        assert wanted.std() > 0.01
        for seen in (session.run(None, {"clip": clips.numpy()})[0], compiled({"clip": clips.numpy()})[0]):
            np.testing.assert_allclose(np.asarray(seen), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "options"), [(40, {"displacement_size": 224, "displacement_window": 3})])
def test_one_graph_for_every_target(tmp_path: Path, height: int, options: dict[str, Any], explained_alike) -> None:
    from flowless.export.build_engine import build
    from flowless.export.bundle import export_bundle

    made = checkpoint(height, **options)
    manifest = export_bundle(made, tmp_path / "bundle")
    # The gate is a thousandth of the spread; what is left here is the order of additions.
    assert manifest.parity["max_abs_diff"] < 1e-4 * manifest.parity["spread"]
    graph = onnx.load(tmp_path / "bundle" / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    # Displacement maps once for both branches, as two products and a softmax; (2 D + 1)^2 shifted products would be hundreds.
    assert (kinds.count("Softmax"), kinds.count("GridSample")) == (1, 1)
    assert len([kind for kind in kinds if kind not in {"Conv", "Relu", "Concat", "MaxPool", "AveragePool", "Pad"}]) < 100
    assert not [kind for kind in kinds if kind.startswith(("Gather", "Scatter"))]
    explained_alike(made, tmp_path / "bundle")
    openvino = build(tmp_path / "bundle", target="openvino")
    assert openvino.status == "verified"
    assert openvino.max_abs_diff is not None
    assert openvino.max_abs_diff < 1e-4 * manifest.parity["spread"]
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        assert build(tmp_path / "bundle", target="tensorrt-rtx").files

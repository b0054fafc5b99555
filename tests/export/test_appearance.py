"""Dynamic appearance as a graph: plain operators, few of them, and the same numbers in ONNX Runtime and OpenVINO."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from flowless.pipeline.clip.spec import ClipSpec

SPEC = ClipSpec(segments=2, frames_per_segment=6, height=40, width=48, short_side=48)


def small(name: str, *, spec: ClipSpec = SPEC, **options: Any) -> Any:
    """Return a model whose scores depend on all of its layers."""
    import torch

    from flowless.train.models import build_model

    torch.manual_seed(3)
    model = build_model(name, classes=5, spec=spec, width=0.25, blocks=1, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    # A fresh PWTP's columns are mostly its last bias: how they are upsampled would not show.
    for layer in model.get_submodule("projection").modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.normal_(layer.weight, 0, 0.05 if layer.in_channels == 3 else layer.in_channels**-0.5)
    for key, value in model.named_parameters():
        if key in {"head.pred.weight", "backbone.project.weight"}:
            torch.nn.init.normal_(value, 0, 0.3)
    return model


def appearance_of(model: Any) -> Any:
    """Return a module that gives the dynamic appearance itself, without a network behind it."""
    import torch

    class Appearance(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            return self.model._input_of_pixels(clip.float())

    return Appearance().eval()


def clips(count: int, *, still: bool = False) -> np.ndarray:
    """Noise, or one frame of noise repeated but for a square that moves."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, *SPEC.shape), dtype=np.uint8)
    if still:
        pixels[:] = pixels[:, :, :1]
        for frame in range(SPEC.frames_per_segment):
            pixels[:, :, frame, 5:15, 4 * frame : 4 * frame + 10] = 250
    return pixels


@pytest.mark.parametrize("subspace", [1, 2, 3])
def test_pwtp_alone(tmp_path: Path, subspace: int) -> None:
    import onnxruntime
    import openvino
    import torch

    from flowless.export.graph.export_graph import export_onnx

    module = appearance_of(small("da-tsm-r18", da_subspace=subspace))
    path = tmp_path / "pwtp.onnx"
    proto = export_onnx(module, path, spec=SPEC, labels=[], name="pwtp", versions={})
    used = Counter(node.op_type for node in proto.graph.node)
    assert {node.domain for node in proto.graph.node} == {""}
    assert (used["Conv"], used["Resize"]) == (5, 1)
    assert not used.keys() & {"Loop", "If", "Scan", "GatherND", "ScatterND", "Einsum", "NonZero"}
    assert len(proto.graph.node) <= {1: 42, 2: 55, 3: 75}[subspace]
    # The pixels come with six axes; behind the first reshape five are enough.
    first = next(index for index, node in enumerate(proto.graph.node) if node.op_type == "Transpose")
    later = {name for node in proto.graph.node[first:] for name in node.output}
    axes = {item.name: len(item.type.tensor_type.shape.dim) for item in (*proto.graph.value_info, *proto.graph.output)}
    assert later <= axes.keys()
    assert max(axes[name] for name in later) == 5

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for clip in (clips(1), clips(3), clips(2, still=True)):
        with torch.inference_mode():
            expected = module(torch.from_numpy(clip)).numpy()
        assert np.abs(expected).max() > 0.05
        for seen in (session.run(None, {"clip": clip})[0], compiled({"clip": clip})[0]):
            # What float32 itself is worth here: columns that nearly depend on each other are divided by little.
            np.testing.assert_allclose(np.asarray(seen), expected, atol={1: 1e-5, 2: 1e-4, 3: 1e-3}[subspace])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("da-tsm-r18", {"da_subspace": 3}), ("da-vit-b", {"da_subspace": 2})],  # others: test_exported_models.py
)
def test_the_bundle_gives_pytorchs_scores(tmp_path: Path, name: str, options: dict[str, Any], assert_bundle_explains_alike) -> None:
    """The project's own gate, on ONNX Runtime and OpenVINO, at every batch size that it tries."""
    from flowless.export.build_engine import build
    from flowless.export.export_bundle import export_bundle
    from flowless.train.checkpoints import Checkpoint

    spec = ClipSpec(segments=4, frames_per_segment=6, height=48, width=48, short_side=56)
    model = small(name, spec=spec, **options)
    checkpoint = Checkpoint(model=model, name=name, spec=spec, labels=tuple("abcde"), recipe={}, versions={}, metrics={})
    manifest = export_bundle(checkpoint, tmp_path / "bundle")
    assert not onnx.load(tmp_path / "bundle" / "model.onnx").functions
    # The gate is a thousandth of the spread; what is left here is the order of additions.
    assert manifest.parity["max_abs_diff"] < 1e-4 * manifest.parity["spread"]
    assert_bundle_explains_alike(checkpoint, tmp_path / "bundle")
    engine = build(tmp_path / "bundle", target="openvino")
    assert engine.status == "verified"
    assert engine.max_abs_diff is not None
    assert engine.max_abs_diff < manifest.parity["allowed"]

"""Models with other inputs and with fewer branches as graphs: PyTorch's scores, and what `flowless explain` finds in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from randomize_weights import randomize_weights

from flowless.pipeline.clip.spec import ClipSpec

DISENTANGLING = "disentangling-bninception"
#: A model, its options, its cue and its branches.
VARIANTS: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("da-tsm-r18", {"da_input": "dynamic-image"}, "", [""]),
    ("da-x3d-xs", {"da_input": "rgb"}, "", [""]),
    ("da-vit-b", {"da_input": "rgb-difference"}, "", [""]),
    ("da-tsm-r18", {"da_mlp": 6, "da_kernel": 7, "da_stride": 1, "da_channels": 12}, "appearance", [""]),
    (DISENTANGLING, {"branches": "appearance"}, "", ["appearance"]),
    (DISENTANGLING, {"branches": "changes", "changes_input": "rgb"}, "", ["changes"]),
    (DISENTANGLING, {"branches": "appearance+changes", "changes_input": "features"}, "", ["appearance", "changes"]),
    (DISENTANGLING, {"branches": "motion+changes", "changes_input": "warped-rgb"}, "displacement", ["motion", "changes"]),
]


def random_model(name: str, options: dict[str, Any]) -> Any:
    import torch

    from flowless.train.models import build_model

    spec = ClipSpec(segments=2, frames_per_segment=3, height=32, width=35, short_side=35)
    torch.manual_seed(3)
    model = build_model(name, classes=4, spec=spec, width=0.125, blocks=1, **options).eval()
    randomize_weights(model)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "system", "branches"), VARIANTS)
def test_as_a_graph(tmp_path: Path, assert_same_outputs, name: str, options: dict[str, Any], system: str, branches: list[str]) -> None:
    import onnxruntime
    import torch

    from flowless.export.explain.introspection import CheckpointModel, ModelOutputs
    from flowless.export.graph.export_graph import export_onnx
    from flowless.export.graph.graph_outputs import opened, read_outputs, tensor_names
    from flowless.train.checkpoints import Checkpoint

    model = random_model(name, options)
    proto = export_onnx(model, tmp_path / "model.onnx", spec=model.spec, labels=list("abcd"), name=name, versions={})
    outputs = read_outputs(proto, what=name)
    assert (outputs.system, [head.branch for head in outputs.heads]) == (system, branches)
    assert bool(outputs.cue) == bool(system)
    names = list(dict.fromkeys([*tensor_names(outputs), "scores"]))
    session = onnxruntime.InferenceSession(opened(proto, names).SerializeToString(), providers=["CPUExecutionProvider"])
    inspected = CheckpointModel(
        Checkpoint(model=model, name=name, spec=model.spec, labels=tuple("abcd"), recipe={}, versions={}, metrics={}), path=Path()
    )
    for batch in (1, 3):
        clips = torch.randint(0, 256, (batch, *model.spec.shape), dtype=torch.uint8).numpy()
        found: dict[str, Any] = dict(zip(names, session.run(names, {"clip": clips}), strict=True))
        ours, cue = inspected.run(clips), inspected.cue(clips)
        assert ours.scores.std() > 0.01
        theirs = ModelOutputs(
            scores=found["scores"],
            branches=tuple(
                replace(mine, name=head.branch, scores=found[head.scores], timescale_weights=None)
                for head, mine in zip(outputs.heads, ours.branches, strict=True)
            ),
        )
        if cue is not None:
            np.testing.assert_allclose(found[outputs.cue].ravel(), cue.values.ravel(), atol=1e-3 * np.abs(cue.values).max())
        assert (cue is None) == (not system)
        assert len(theirs.branches) == len(branches)
        assert_same_outputs(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [("da-tsm-r18", {"da_input": "rgb-difference"}), (DISENTANGLING, {"branches": "changes", "changes_input": "rgb"})]
)
def test_a_bundle_without_a_cue(tmp_path: Path, assert_bundle_explains_alike, name: str, options: dict[str, Any]) -> None:
    """The export's own gate, and the same seen in the checkpoint and in the bundle."""
    from flowless.export.export_bundle import export_bundle
    from flowless.train.checkpoints import Checkpoint

    model = random_model(name, options)
    checkpoint = Checkpoint(model=model, name=name, spec=model.spec, labels=tuple("abcd"), recipe={}, versions={}, metrics={})
    manifest = export_bundle(checkpoint, tmp_path / "bundle")
    assert manifest.parity["max_abs_diff"] < manifest.parity["allowed"]
    assert_bundle_explains_alike(checkpoint, tmp_path / "bundle")

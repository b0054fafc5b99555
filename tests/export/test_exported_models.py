"""Every model as one graph: exported, run by ONNX Runtime, and held against PyTorch by the bundle's own gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from flowless.export.graph.pa_function import pa_nodes
from flowless.pipeline.clip.spec import ClipSpec


def checkpoint(name: str, **options: Any):
    """Return a small model as if trained: its scores depend on all of its branches."""
    import torch
    from randomize_weights import randomize_weights

    from flowless.train.checkpoints import Checkpoint
    from flowless.train.models import build_model

    spec = ClipSpec(segments=4, frames_per_segment=3, height=48, width=48, short_side=56)
    torch.manual_seed(7)
    model = build_model(name, classes=5, spec=spec, width=0.25, blocks=1, **options).eval()
    randomize_weights(model)
    return Checkpoint(model=model, name=name, spec=spec, labels=tuple("abcde"), recipe={}, versions={}, metrics={})


CASES = [
    ("pan-pa-r18", {"pa_depth": 3}, 0),  # other depths are plain operators
    *(
        pytest.param(name, options, nodes, marks=pytest.mark.slow)
        for name, options, nodes in (
            ("pan-rgb-r18", {}, 0),
            ("stm-r18", {"stm_fixed": True, "stm_fusion": "concat"}, 0),
            # As imported from the official code: eps inside the norm, in both nodes' one body.
            ("pan-en-r18", {"eps_inside": True, "pa_encoding": "e2"}, 2),
            ("pan-lite-r18", {"pa_depth": 0}, 0),
            # PAN's other heads (Table IV) and weights of its branches.
            ("pan-full-r18", {"aggregation": "vip", "fusion_weights": (1.0, 3.0)}, 1),
            ("pan-rgb-r18", {"aggregation": "2"}, 0),
            ("pan-rgb-r18", {"aggregation": "average"}, 0),
            # STM's modules alone and types of convolution (Tables 6 and 10).
            ("stm-r18", {"stm_temporal": "ordinary", "stm_motion": "ordinary"}, 0),
            ("stm-r18", {"stm_modules": "cstm", "stm_spatial": "channel-wise"}, 0),
            ("stm-r18", {"stm_modules": "cmm"}, 0),
            ("pan-pa-r18", {"pa_depth": 2, "pa_encoding": "e2"}, 0),
        )
    ),
]


@pytest.mark.parametrize(("name", "options", "nodes"), CASES)
def test_one_graph_with_pytorchs_scores(
    tmp_path: Path, name: str, options: dict[str, Any], nodes: int, assert_bundle_explains_alike
) -> None:
    from flowless.export.export_bundle import export_bundle

    made = checkpoint(name, **options)
    same_scores(export_bundle(made, tmp_path / "bundle"), name, nodes)
    assert_bundle_explains_alike(made, tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        # In the process that test_parity_table.py has the same bundle in: another would wait for it.
        pytest.param(name, int(name.startswith("pan")), marks=pytest.mark.xdist_group(f"table-{name}"))
        for name in ("tsn-r18", "tsm-r18", "stm-r18", "pan-full-r18", "da-tsm-r18", "da-x3d-xs")
    ],
)
def test_what_has_learnt_is_one_graph_too(name: str, nodes: int, learnt, assert_bundle_explains_alike) -> None:
    from flowless.engines.bundle.manifest import read_manifest
    from flowless.train.checkpoints import load_checkpoint

    bundle = learnt(name)
    same_scores(read_manifest(bundle), name, nodes)
    assert_bundle_explains_alike(load_checkpoint(bundle.with_suffix(".safetensors")), bundle)


def same_scores(manifest, name: str, nodes: int) -> None:
    proto = onnx.load(manifest.path_of(manifest.graph))
    assert (manifest.model, [item.name for item in proto.graph.output]) == (name, ["scores"])
    assert len(pa_nodes(proto)) == nodes
    assert len(proto.functions) == min(1, nodes)
    # The gate is a thousandth of the spread; what is left here is the order of additions.
    assert manifest.parity["max_abs_diff"] < 1e-4 * manifest.parity["spread"]

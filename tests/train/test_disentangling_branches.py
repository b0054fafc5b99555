"""Single branches and pairs of Disentangling, and the inputs of its changes branch: Tables 1, 2, 4, 5 and 6 of the paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import disentangling_reference as plain
import numpy as np
import pytest
import torch
from torch import nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.loop.training_module import TrainingModule
from flowless.train.models import DisentanglingRecognizer, build_model
from flowless.train.models.backbones.bn_inception import BNInception
from flowless.train.models.flops import size_of
from flowless.train.models.options import DisentanglingOptions
from flowless.train.recipes import find_recipe

NAME = "disentangling-bninception"
SPEC = ClipSpec(segments=2, frames_per_segment=3, height=32, width=33, short_side=33)
#: All models with fewer branches, or with another input of the changes branch.
VARIANTS = [
    {"branches": "appearance"},
    {"branches": "motion"},
    {"branches": "changes"},
    {"branches": "appearance+motion"},
    {"branches": "appearance+changes"},
    {"branches": "motion+changes"},
    {"branches": "changes", "changes_input": "features"},
    {"branches": "changes", "changes_input": "rgb"},
    {"branches": "changes", "changes_input": "warped-rgb"},
    {"branches": "appearance+changes", "changes_input": "rgb"},
    {"changes_input": "features"},
    {"changes_input": "rgb"},
]
#: Branches, input of changes and size of the maps: every branch and every input, against NumPy.
CHECKED = [
    ("appearance", "warped-features", 112),
    ("appearance+motion", "warped-features", 224),
    ("motion+changes", "warped-features", 112),
    ("changes", "features", 112),
    ("motion+changes", "features", 224),
    ("appearance+changes", "rgb", 112),
    ("changes", "warped-rgb", 112),
    ("changes", "warped-rgb", 224),
]


def make(**options: Any) -> DisentanglingRecognizer:
    torch.manual_seed(4)
    model = build_model(NAME, **({"classes": 5, "spec": SPEC, "width": 0.125, "displacement_window": 2} | options))
    assert isinstance(model, DisentanglingRecognizer)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.get_buffer("running_mean"), 0, 0.2)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    return model.eval()


def clips(spec=SPEC, *, batch=2):
    return torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("branches", "changed", "size"), CHECKED)
def test_scores_equal_the_reference(reference, branches, changed, size):
    model = make(branches=branches, changes_input=changed, displacement_size=size).double()
    clip = clips()
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    stride = 1 if size == 224 else 2
    options: dict[str, Any] = {"window": 2, "temperature": 0.02, "stride": stride, "branches": branches.split("+"), "changed": changed}
    wanted = plain.scores(clip.numpy(), state, SPEC, reference, **options)
    assert (wanted.std((1, 2)) > 0.02).all()
    exact = (clip.double().movedim(-1, -3) - model.mean.view(3, 1, 1)) / model.std.view(3, 1, 1)
    with torch.inference_mode():
        np.testing.assert_allclose(model.forward_frames(exact), wanted.mean(0), atol=1e-5)
        scores = model.float().branch_scores(clip)
        np.testing.assert_allclose(scores, wanted, atol=2e-3)
        torch.testing.assert_close(model(clip), scores.mean(0))


@pytest.mark.parametrize("branches", ["appearance", "motion", "changes", "appearance+motion", "appearance+changes", "motion+changes"])
def test_a_single_branch_scores_as_in_the_whole_model(branches):
    """Its tensors have the same names as in the whole model, and with the same values it gives the same scores."""
    whole, part, names = make(), make(branches=branches), branches.split("+")
    given, own = whole.state_dict(), part.state_dict()
    assert {name.partition(".")[0] for name in own} == {"low", *names}
    part.load_state_dict({name: given[name] for name in own})
    with torch.inference_mode():
        scores = dict(zip(("appearance", "motion", "changes"), whole.branch_scores(clips()), strict=True))
        torch.testing.assert_close(part.branch_scores(clips()), torch.stack([scores[name] for name in names]), rtol=0, atol=1e-6)
        vectors = part.features(part.normalise(part.as_frames(clips())))
    assert vectors.shape[:2] == (2, 2)
    assert vectors.shape[2] == sum(branch.head.get_submodule("pred").in_features for branch in part.branches.values())  # type: ignore[misc]


@pytest.mark.parametrize("options", VARIANTS)
def test_only_the_needed_parts_are_built_and_all_learn(train_index, options):
    model = make(**options)
    chosen = DisentanglingOptions(**options)
    networks = [module for module in model.modules() if isinstance(module, BNInception)]
    assert len(networks) == len({"motion", "changes"} & set(chosen.built))
    assert list(model.branches) == list(chosen.built)
    assert len(model.heads) == len(chosen.built)
    measured = "motion" in chosen.built or ("changes" in chosen.built and chosen.changes_input.startswith("warped"))
    assert model.has_displacement == measured
    if measured:
        assert model.displacement(clips()).shape[:4] == (2, 2, 2, 2)
    else:
        with pytest.raises(FlowlessError, match="computes no displacement maps: branches is"):
            model.displacement(clips())
    recipe = find_recipe(f"{NAME}/moving-shapes", segments=2, frames_per_segment=3, size=32, short_side=32, partial_bn=True, **options)
    module = TrainingModule(model, recipe, index=train_index, val_index=None).train()
    grouped = [id(value) for group in module.configure_optimizers().param_groups for value in group["params"]]
    assert sorted(grouped) == sorted(id(value) for value in model.parameters())
    # Partial batch norm keeps the first of each network; that of appearance is in the shared layer.
    free = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d) and part.training]
    shared = ["low.norm"] if options != {"branches": "changes", "changes_input": "rgb"} else []
    assert free == shared + [f"{name}.network.conv1.norm" for name in chosen.built if name != "appearance"]


def test_every_layer_has_a_gradient():
    for options in VARIANTS:
        model = make(**options, blocks=1, dropout=0.0).train()
        model.branch_scores(clips()).square().sum().backward()
        assert all(value.grad is not None and value.grad.any() for value in model.parameters()), options


def test_table_2_one_frame():
    spec = replace(SPEC, frames_per_segment=1)
    with torch.inference_mode():
        assert make(spec=spec, branches="appearance")(clips(spec)).shape == (2, 5)
    for options in ({}, {"branches": "motion"}, {"branches": "changes", "changes_input": "rgb"}):
        with pytest.raises(FlowlessError, match="frames_per_segment is 1; motion and changes need at least 2"):
            make(spec=spec, **options)


def test_sizes():
    """Parts of the whole model's 31.28 M and 54.2 GMAC for 8 frames."""
    spec = ClipSpec(segments=1, frames_per_segment=8)
    whole, *alone = (size_of(NAME, classes=101, spec=spec, branches=name) for name in ("all", "appearance", "motion", "changes"))
    network = sum(value.numel() for value in BNInception().to("meta").parameters())
    head, first, norm = 1025 * 101, 64 * 3 * 49, 128
    assert [size.parameters for size in alone] == [
        network + head,
        network + head + first + norm - 64 * 49,
        network + head + first + norm + 61 * 64 * 49,
    ]
    assert sum(size.parameters for size in alone) == whole.parameters + 2 * (first + norm)
    plain_rgb = size_of(NAME, classes=101, spec=spec, branches="changes", changes_input="rgb")
    assert plain_rgb.parameters == network + head
    # Each of seven pairs goes through a whole network.
    assert plain_rgb.macs / 1e9 == pytest.approx(7 * 2.03, rel=0.005)
    features, warped = (
        size_of(NAME, classes=101, spec=spec, branches="changes", changes_input=name) for name in ("features", "warped-features")
    )
    assert features.parameters == warped.parameters
    assert features.macs < warped.macs
    # Without displacement maps, their size has no effect.
    for name, alike in (("changes", features), ("appearance", alone[0])):
        options = {"branches": name, "displacement_size": 224, "changes_input": "features" if name == "changes" else "warped-features"}
        assert size_of(NAME, classes=101, spec=spec, **options) == alike


@pytest.mark.parametrize("options", [{"branches": "appearance+changes", "changes_input": "rgb"}, {"branches": "motion"}])
def test_checkpoints(tmp_path, options):
    model = make(**options)
    path = save_checkpoint(tmp_path / "m.safetensors", model, model_name=NAME, recipe={}, spec=SPEC, labels=list("abcde"), metrics={})
    loaded = load_checkpoint(path).model
    assert {name: loaded.config[name] for name in options} == options
    with torch.inference_mode():
        assert torch.equal(loaded(clips()), model(clips()))


def test_checkpoints_of_earlier_versions(tmp_path):
    new = {"branches": "all", "changes_input": "warped-features"}
    model = make(**new)
    model.config = {name: value for name, value in model.config.items() if name not in new}
    path = save_checkpoint(tmp_path / "m.safetensors", model, model_name=NAME, recipe={}, spec=SPEC, labels=list("abcde"), metrics={})
    with torch.inference_mode():
        assert torch.equal(load_checkpoint(path).model(clips()), model(clips()))


def test_invalid_options_are_refused():
    for options, message in (
        ({"branches": "both"}, "branches is 'both'; it must be one of all, appearance, motion, changes, appearance"),
        ({"changes_input": "flow"}, "changes_input is 'flow'; it must be one of warped-features, features, rgb, warped-rgb"),
        (
            {"branches": "appearance+motion", "changes_input": "rgb"},
            r"changes_input is rgb, but branches appearance\+motion have no changes",
        ),
        ({"branches": "motion", "appearance_pooling": "late"}, "appearance_pooling is late, but branches motion have no appearance"),
    ):
        with pytest.raises(FlowlessError, match=message):
            make(**options)

"""BN-Inception's published weights: a file in their layout gives a network with the published network's outputs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import build_model
from flowless.train.models.backbones.bn_inception import BNInception, Unit
from flowless.train.models.backbones.bn_inception_weights import published_names, published_network

SPEC = ClipSpec(segments=1, frames_per_segment=2, height=32, width=32, short_side=32)


def published(seed: int) -> dict[str, Tensor]:
    """Return weights under the published names, with biases, batch norms as rows `[1, C]`, and a classifier."""
    torch.manual_seed(seed)
    weights: dict[str, Tensor] = {"last_linear.weight": torch.randn(1000, 1024), "last_linear.bias": torch.randn(1000)}
    units = [module for module in BNInception().modules() if isinstance(module, Unit)]
    for name, unit in zip(published_names(), units, strict=True):
        channels = unit.conv.out_channels
        weights[f"{name}.weight"], weights[f"{name}.bias"] = unit.conv.weight.detach(), torch.randn(channels)
        for part, low, high in (("weight", 0.5, 1.5), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2), ("running_var", 0.5, 2)):
            weights[f"{name}_bn.{part}"] = torch.empty(1, channels).uniform_(low, high)
    return weights


def unit_as_published(x: np.ndarray, weights: dict[str, Tensor], name: str, plain, **options) -> np.ndarray:
    values = {key: value.double().numpy().reshape(value.shape[-1:]) for key, value in weights.items() if key.startswith(f"{name}_bn.")}
    bias = weights[f"{name}.bias"].double().numpy()
    x = plain.conv2d(x, weights[f"{name}.weight"].double().numpy(), bias=bias, **options)
    return np.maximum(plain.batch_norm(x, values, f"{name}_bn"), 0)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return published(0)


@pytest.fixture(scope="module")
def file(tmp_path_factory, weights) -> Path:
    path = tmp_path_factory.mktemp("weights") / "bn_inception.pth"
    torch.save({"state_dict": weights}, path)
    return path


def test_published_weights_give_the_published_network(reference, weights, file):
    network = published_network(file, spec=SPEC).double().eval()
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32)).astype(np.float64)  # RGB
    theirs = pixels[:, ::-1] - np.array([104.0, 117.0, 128.0])[:, None, None]
    ours = (pixels / 255 - np.array(SPEC.mean)[:, None, None]) / np.array(SPEC.std)[:, None, None]
    wanted = unit_as_published(theirs, weights, "conv1_7x7_s2", reference, stride=2, padding=3)
    with torch.inference_mode():
        low = network.conv1(torch.from_numpy(ours))
        np.testing.assert_allclose(low[:, :, 2:-2, 2:-2], wanted[:, :, 2:-2, 2:-2], rtol=1e-4, atol=1e-4)
        # A layer in the middle, with bias and batch norm.
        x = np.random.default_rng(2).standard_normal((1, 192, 6, 6))
        double = network.body.stages[1].get_submodule("0.paths.2.0")
        np.testing.assert_allclose(
            double(torch.from_numpy(x)), unit_as_published(x, weights, "inception_3a_double_3x3_reduce", reference), atol=1e-5
        )


def test_published_names():
    names = list(published_names())
    assert len(names) == len(set(names)) == 69
    assert names[:5] == ["conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3", "inception_3a_1x1", "inception_3a_3x3_reduce"]
    assert names[-1] == "inception_5b_pool_proj"
    assert not {"inception_3c_1x1", "inception_3c_pool_proj", "inception_4e_1x1", "inception_4e_pool_proj"} & set(names)


def test_every_branch_starts_from_the_published_weights(weights, file):
    model = build_model("disentangling-bninception", classes=5, spec=SPEC, pretrained_path=file)
    state = model.state_dict()
    first = state["low.conv.weight"]
    for branch, channels in (("motion", 2), ("changes", 64)):
        wide = state[f"{branch}.network.conv1.conv.weight"]
        torch.testing.assert_close(wide, first.mean(1, keepdim=True).expand(-1, channels, -1, -1))
    for place in ("appearance.network", "motion.network.body", "changes.network.body"):
        assert torch.equal(state[f"{place}.stages.3.1.paths.0.conv.weight"], weights["inception_5b_1x1.weight"])


def test_single_branches_start_from_the_published_weights(weights, file):
    make = partial(build_model, "disentangling-bninception", classes=5, spec=SPEC, pretrained_path=file)
    first = published_network(file, spec=SPEC).conv1.state_dict()
    variants: list[Any] = [{"branches": "changes", "changes_input": "rgb"}, {"branches": "motion+changes", "changes_input": "warped-rgb"}]
    for options in variants:
        state = make(**options).state_dict()
        # Differences of RGB frames use the published first layer unchanged.
        assert all(torch.equal(state[f"changes.network.conv1.{name}"], value) for name, value in first.items())
        assert ("low.conv.weight" in state) == ("motion" in options["branches"])
        assert torch.equal(state["changes.network.body.stages.3.1.paths.0.conv.weight"], weights["inception_5b_1x1.weight"])
    state = make(branches="motion").state_dict()
    assert torch.equal(state["low.conv.weight"], first["conv.weight"])
    torch.testing.assert_close(state["motion.network.conv1.conv.weight"], first["conv.weight"].mean(1, keepdim=True).expand(-1, 2, -1, -1))


def test_other_weights_are_refused(tmp_path, weights, file):
    name = "disentangling-bninception"
    with pytest.raises(FlowlessError, match=r"no ImageNet weights of BN-Inception.*pretrained_path"):
        build_model(name, classes=5, spec=SPEC, pretrained=True)
    with pytest.raises(FlowlessError, match=r"width is 0\.5"):
        build_model(name, classes=5, spec=SPEC, width=0.5, pretrained_path=file)
    for change in ({"conv2_3x3.weight": torch.zeros(1)}, {"inception_4c_3x3_bn.bias": torch.zeros(3)}):
        torch.save(weights | change, tmp_path / "other.pth")
        with pytest.raises(FlowlessError, match=r"other\.pth: does not hold the published weights"):
            published_network(tmp_path / "other.pth", spec=SPEC)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(FlowlessError, match=r"resnet\.pth.*conv1_7x7_s2"):
        published_network(tmp_path / "resnet.pth", spec=SPEC)

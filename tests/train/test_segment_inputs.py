"""The inputs that Dynamic Appearance is compared with, against NumPy float64, and their recognisers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.loop.joint_training import joint_training
from flowless.train.loop.optimizer import parameter_groups
from flowless.train.models import AppearanceRecognizer, build_model
from flowless.train.models.backbones.vision_transformer import ClipTransformer
from flowless.train.models.segment_inputs import DynamicImageRecognizer, StackRecognizer, rank_pooling
from flowless.train.recipes import find_recipe

SPEC = ClipSpec(segments=2, frames_per_segment=4, height=32, width=48, short_side=48)
FAMILY = ("da-tsm-r18", "da-x3d-xs", "da-vit-b")
#: Input -> the channels of the backbone's input for segments of four frames.
OTHERS = {"rgb-difference": 9, "dynamic-image": 3, "rgb": 3}


def clips(spec=SPEC, *, batch=2, seed=0):
    return torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make(name="da-tsm-r18", *, spec=SPEC, **options) -> Any:
    torch.manual_seed(1)
    model = build_model(name, classes=5, spec=spec, width=0.25, blocks=1, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
    for key, value in model.named_parameters():
        if key in {"head.pred.weight", "backbone.project.weight"}:
            nn.init.normal_(value, 0, 0.3)
    return model


def rank_pooled(frames):
    """Sum over all pairs of frames q > t of V_q - V_t, V the running means: `[K, T, ...]` to `[K, ...]`."""
    count = frames.shape[1]
    means = [frames[:, : t + 1].mean(1) for t in range(count)]
    return np.sum([means[q] - means[t] for q in range(count) for t in range(q)], axis=0)


@pytest.mark.parametrize("frames", [2, 3, 6, 16])
def test_rank_pooling_coefficients(frames):
    np.testing.assert_allclose(rank_pooling(frames), rank_pooled(np.eye(frames)[None].transpose(0, 2, 1))[0], atol=1e-12)
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, frames + 1))])
    closed = [2 * (frames - t + 1) - (frames + 1) * (harmonic[frames] - harmonic[t - 1]) for t in range(1, frames + 1)]
    np.testing.assert_allclose(rank_pooling(frames), closed, atol=1e-12)
    assert sum(rank_pooling(frames)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", OTHERS)
def test_backbone_inputs_equal_numpy(kind):
    clip = clips()
    frames = ((clip.double().numpy() / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)).transpose(0, 1, 2, 5, 3, 4)
    stacks = frames.reshape(-1, *frames.shape[2:])
    wanted = {
        "rgb-difference": np.diff(stacks, axis=1).reshape(len(stacks), 9, 32, 48),
        "dynamic-image": 0.1 * rank_pooled(stacks),
        "rgb": stacks[:, 0],
    }[kind].reshape(2, 2, -1, 32, 48)
    model = make(da_input=kind)
    with torch.inference_mode():
        np.testing.assert_allclose(model._input_of_pixels(clip), wanted, atol=1e-5)
        np.testing.assert_allclose(model._input(torch.from_numpy(frames).float()), wanted, atol=1e-5)
        if isinstance(model, StackRecognizer):
            np.testing.assert_allclose(model.images_of_pixels(clip), wanted, atol=1e-5)


def test_a_dynamic_image_is_in_the_range_of_frames():
    """Static pixels give zero; a step from black to white in the middle of six frames gives 0.4 of the step."""
    model = make(spec=replace(SPEC, frames_per_segment=6), da_input="dynamic-image")
    assert isinstance(model, DynamicImageRecognizer)
    still = torch.rand(1, 1, 3, 4, 4).expand(-1, 6, -1, -1, -1)
    assert model.segment_images(still).abs().max() < 1e-6
    step = torch.cat([torch.zeros(1, 3, 3, 1, 1), torch.ones(1, 3, 3, 1, 1)], 1)
    wanted = 0.1 * rank_pooled(step.double().numpy()).ravel()
    assert model.segment_images(step).flatten().tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    assert wanted.tolist() == pytest.approx([0.395] * 3)
    assert "weights" not in model.state_dict()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("kind", OTHERS)
def test_recognisers_of_other_inputs(name, kind):
    model = make(name, da_input=kind)
    clip = clips()
    with torch.inference_mode():
        scores = model(clip)
        assert scores.std() > 1e-3
        torch.testing.assert_close(model.forward_frames(model.normalise(model.as_frames(clip))), scores, rtol=1e-4, atol=1e-5)
        for frame in range(4):
            other = clip.clone()
            other[:, 1, frame] = clips(seed=9)[:, 1, frame]
            assert ((model(other) - scores).abs().max() > 1e-6) == (kind != "rgb" or frame == 0), frame
    # There is one loss, and no parameter of a projection.
    assert not isinstance(model, AppearanceRecognizer)
    assert joint_training(model, find_recipe(f"{name}/moving-shapes", da_input=kind)) is None
    groups = parameter_groups(model, projection_rate=3.0)
    assert not [group["name"] for group in groups if group["name"].startswith("projection")]
    assert sorted(id(value) for group in groups for value in group["params"]) == sorted(id(value) for value in model.parameters())


def test_rgb_equals_tsm_on_the_first_frames():
    model, tsm = make(da_input="rgb"), make("tsm-r18", spec=replace(SPEC, frames_per_segment=1))
    tsm.load_state_dict(model.state_dict())
    clip = clips()
    with torch.inference_mode():
        assert torch.equal(model(clip), tsm(clip[:, :, :1]))


def test_pretrained_first_layers(tmp_path):
    resnet: Any = timm.create_model("resnet18")
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    for kind, channels in OTHERS.items():
        model = build_model("da-tsm-r18", classes=5, spec=SPEC, da_input=kind, pretrained_path=tmp_path / "resnet.safetensors")
        weight = model.get_parameter("backbone.conv1.weight").detach()
        wanted = resnet.conv1.weight.detach()
        torch.testing.assert_close(weight, wanted if channels == 3 else wanted.mean(1, keepdim=True).expand(-1, channels, -1, -1))
    donor: Any = timm.create_model("vit_base_patch16_224", depth=1)
    save_file(donor.state_dict(), tmp_path / "vit.safetensors")
    vit = ClipTransformer(height=32, width=32, blocks=1, pretrained_path=tmp_path / "vit.safetensors", inputs=9)
    patch = donor.patch_embed.proj.weight.detach()
    torch.testing.assert_close(vit.patch.weight.detach(), patch.mean(1, keepdim=True).expand(-1, 9, -1, -1))
    assert vit(torch.zeros(1, 2, 9, 32, 32)).shape == (1, 2, 768)


@pytest.mark.parametrize(
    "options", [{"da_input": "rgb-difference"}, {"da_input": "dynamic-image"}, {"da_mlp": 6, "da_kernel": 7, "da_stride": 1}]
)
def test_checkpoints_store_the_options(tmp_path, options):
    model = make(**options)
    path = save_checkpoint(
        tmp_path / "m.safetensors", model, model_name="da-tsm-r18", recipe={}, spec=SPEC, labels=list("abcde"), metrics={}
    )
    loaded = load_checkpoint(path).model
    assert {name: loaded.config[name] for name in options} == options
    with torch.inference_mode():
        assert torch.equal(loaded(clips()), model(clips()))


def test_checkpoints_of_earlier_versions(tmp_path):
    """They have the paper's choice of every option."""
    new = {"da_input": "dynamic-appearance", "da_mlp": 7, "da_kernel": 9, "da_stride": 8, "da_channels": 24}
    model = make(**new)
    model.config = {name: value for name, value in model.config.items() if name not in new}
    path = save_checkpoint(
        tmp_path / "m.safetensors", model, model_name="da-tsm-r18", recipe={}, spec=SPEC, labels=list("abcde"), metrics={}
    )
    with torch.inference_mode():
        assert torch.equal(load_checkpoint(path).model(clips()), model(clips()))


def test_invalid_options_are_refused():
    for frames, options, message in (
        (1, {"da_input": "rgb-difference"}, "da_input is rgb-difference with segments of 1 frame"),
        (1, {"da_input": "dynamic-image"}, "da_input is dynamic-image with segments of 1 frame"),
        (4, {"da_input": "flow"}, "da_input is 'flow'; it must be one of dynamic-appearance, rgb-difference, dynamic-image, rgb"),
        (4, {"da_input": "rgb", "da_mlp": 1, "da_channels": 12}, "da_mlp is 1, da_channels is 12, but da_input rgb has no projection"),
    ):
        with pytest.raises(FlowlessError, match=message):
            make(spec=replace(SPEC, frames_per_segment=frames), **options)
    assert make(spec=replace(SPEC, frames_per_segment=1), da_input="rgb")

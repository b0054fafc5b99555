"""Dynamic appearance: PWTP against the paper's formula in NumPy float64, and the recognisers built on it."""

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
from flowless.train.loop.optimizer import parameter_groups
from flowless.train.models import AppearanceRecognizer, build_model
from flowless.train.models.backbones.vision_transformer import Blocks, ClipTransformer
from flowless.train.models.backbones.x3d import X3D, Block, Squeeze
from flowless.train.models.dynamic_appearance import da_vit
from flowless.train.models.layers.temporal_projection import EPS, MLP_SHAPES, PixelwiseTemporalProjection, enopr

SPEC = ClipSpec(segments=4, frames_per_segment=4, height=32, width=48, short_side=48)
FAMILY = ("da-tsm-r18", "da-x3d-xs", "da-vit-b")


def clips(spec=SPEC, *, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8, generator=generator)


def randomised(model: Any) -> Any:
    """Give batch norms random statistics and weights, as trained ones have; at initialisation some residual branches end in zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.get_buffer("running_mean"), 0, 0.2)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    return model.eval()


def random_projection(frames: int, subspace: int, **options: Any) -> PixelwiseTemporalProjection:
    """Return a PWTP with random weights whose columns vary between positions; at initialisation they are mostly the last layer's bias."""
    torch.manual_seed(frames * subspace)
    module = randomised(PixelwiseTemporalProjection(frames, subspace=subspace, **options).double())
    nn.init.normal_(module.describe.weight, 0, 0.1)
    for layer in module.mlp.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0, layer.in_channels**-0.5)
    return module


def make(name, *, spec=SPEC, seed=1, **options) -> Any:
    torch.manual_seed(seed)
    model = randomised(build_model(name, classes=5, spec=spec, width=0.25, **options))
    nn.init.normal_(model.head.pred.weight, 0, 0.3)
    return model


@pytest.mark.parametrize(("frames", "subspace"), [(3, 1), (4, 1), (8, 1), (4, 2), (8, 2), (6, 3), (8, 3)])
@pytest.mark.parametrize("size", [(24, 16), (19, 37)])
def test_the_projection_equals_the_reference(reference, frames, subspace, size):
    module = random_projection(frames, subspace)
    x = torch.randn(2, frames, 3, *size, dtype=torch.double)
    wanted = reference.temporal_projection(x.numpy(), {name: value.numpy() for name, value in module.state_dict().items()}, subspace)
    with torch.inference_mode():
        columns = [length for _, length in module.columns(x)]
        spread = (module.columns(x)[0][0].std((2, 3)) / columns[0].sqrt().mean()).mean().item()
        assert spread > 0.05
        # EPS causes a relative error of about EPS / length, which is visible where a column is short.
        allowed = torch.stack([2 * EPS / length for length in columns]).sum(0)[:, :, None].numpy() + 1e-9
        off = np.abs(module.residual(x).numpy() - wanted)
        assert (off <= 10 * allowed).all()
        assert np.median(allowed) < 1e-4
        np.testing.assert_allclose(module(x), module.residual(x).mean(1), atol=1e-9)
        assert enopr(module.residual(x)).item() == pytest.approx((wanted**2).sum() / (2 * 3 * size[0] * size[1]), rel=1e-3)


@pytest.mark.parametrize("subspace", [1, 2, 3])
def test_without_eps_the_projection_is_exact(reference, monkeypatch, subspace):
    monkeypatch.setattr("flowless.train.models.layers.temporal_projection.EPS", 0.0)
    module = random_projection(8, subspace)
    x = torch.randn(1, 8, 3, 19, 37, dtype=torch.double)
    wanted = reference.temporal_projection(x.numpy(), {name: value.numpy() for name, value in module.state_dict().items()}, subspace)
    with torch.inference_mode():
        np.testing.assert_allclose(module.residual(x), wanted, atol=1e-8)
        np.testing.assert_allclose(module(x), wanted.mean(1), atol=1e-8)


@pytest.mark.parametrize(
    ("config", "kernel", "stride", "channels"),
    [(1, 9, 8, 24), (2, 7, 1, 12), (3, 7, 4, 24), (4, 11, 8, 24), (5, 9, 3, 5), (6, 7, 1, 24), (7, 1, 2, 8)],
)
def test_every_mlp_configuration_equals_the_reference(reference, monkeypatch, config, kernel, stride, channels):
    """Table 8's networks after Table 4a's convolutions, and after others."""
    monkeypatch.setattr("flowless.train.models.layers.temporal_projection.EPS", 0.0)
    module = random_projection(4, 2, kernel=kernel, stride=stride, channels=channels, mlp=MLP_SHAPES[config])
    x = torch.randn(1, 4, 3, 13, 18, dtype=torch.double)
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    wanted = reference.temporal_projection(x.numpy(), state, 2, stride=stride)
    with torch.inference_mode():
        np.testing.assert_allclose(module.residual(x), wanted, atol=1e-7)


@pytest.mark.parametrize("subspace", [1, 2, 3])
def test_float32_is_enough(subspace):
    module = random_projection(8, subspace)
    x = torch.randn(2, 8, 3, 40, 40, dtype=torch.double)
    with torch.inference_mode():
        wanted = module.residual(x), module(x)
        single = module.float()
        for ours, exact in zip((single.residual(x.float()), single(x.float())), wanted, strict=True):
            assert (ours - exact).abs().max() < 1e-3
            assert (ours - exact).abs().mean() < 1e-5


@pytest.mark.parametrize("subspace", [1, 2, 3])
def test_forward_is_the_mean_of_the_residual(subspace):
    torch.manual_seed(0)
    module = randomised(PixelwiseTemporalProjection(6, subspace=subspace))
    x = torch.randn(2, 6, 3, 33, 40)
    torch.testing.assert_close(module(x), module.residual(x).mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("subspace", [2, 3])
def test_dependent_columns_give_no_nan(subspace):
    """With equal columns the subspace has one dimension, and the result equals that of a single column."""
    torch.manual_seed(0)
    module = randomised(PixelwiseTemporalProjection(6, subspace=subspace))
    twin = randomised(PixelwiseTemporalProjection(6, subspace=1))
    last: Any = module.mlp[-1]
    state = module.state_dict()
    with torch.no_grad():
        for part in (last.weight, last.bias):
            part.copy_(part[::subspace].repeat_interleave(subspace, 0))
        for name, value in twin.state_dict().items():
            value.copy_(state[name][::subspace] if name.startswith("mlp.3") else state[name])
    x = torch.randn(1, 6, 3, 16, 16, requires_grad=True)
    torch.testing.assert_close(module(x), twin(x), rtol=1e-3, atol=1e-4)
    enopr(module.residual(x)).backward()
    assert all(torch.isfinite(value.grad).all() for value in module.parameters() if value.grad is not None)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        # With columns of zeros nothing is projected out.
        torch.testing.assert_close(module.residual(x), x)


def test_static_frames_have_no_residual():
    """Constant columns span the static subspace: the residual is the difference from the mean over time, zero for static frames."""
    module = PixelwiseTemporalProjection(4).eval()
    last: Any = module.mlp[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(0.5)
        x = torch.randn(1, 4, 3, 16, 16)
        torch.testing.assert_close(module.residual(x), x - x.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)
        assert module.residual(x[:, :1].expand(-1, 4, -1, -1, -1)).abs().max() < 1e-5


def test_training_reduces_the_residual():
    torch.manual_seed(0)
    module = PixelwiseTemporalProjection(4)
    still = torch.randn(4, 1, 3, 32, 32) + 0.1 * torch.randn(4, 4, 3, 32, 32)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = enopr(module.residual(still))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("subspace", [1, 2])
def test_pixels_frames_and_training_give_equal_scores(name, subspace):
    model = make(name, da_subspace=subspace)
    assert isinstance(model, AppearanceRecognizer)
    clip = clips()
    with torch.inference_mode():
        scores = model(clip)
        torch.testing.assert_close(model.forward_frames(model.normalise(model.as_frames(clip))), scores, rtol=1e-4, atol=1e-5)
        trained, loss = model.scores_and_enopr(clip)
        torch.testing.assert_close(trained, scores, rtol=1e-4, atol=1e-4)
        assert loss > 0
        assert model.appearance(clip).shape == (2, 4, 3, 32, 48)
        assert model.features(model.normalise(model.as_frames(clip))).shape[::2] == (2, model.backbone.num_features)
    assert scores.std() > 1e-3


@pytest.mark.parametrize("name", FAMILY)
def test_every_frame_is_seen(name):
    model = make(name)
    clip = clips()
    with torch.inference_mode():
        for frame in range(4):
            other = clip.clone()
            other[:, 1, frame] = clips(seed=9)[:, 1, frame]
            assert (model(clip) - model(other)).abs().max() > 1e-5, frame


def test_segments_interact_in_every_family():
    """Scores are not a mean over independent segments: segment 0 changes the contribution of segment 1."""
    one, other = clips(batch=1), clips(batch=1, seed=3)
    for name in FAMILY:
        model = make(name)
        mixed = [torch.cat([a[:, :1], b[:, 1:]], 1) for a in (one, other) for b in (one, other)]
        with torch.inference_mode():
            scores = [model(clip) for clip in mixed]
        assert (scores[0] - scores[1] - scores[2] + scores[3]).abs().max() > 1e-5, name


def test_the_transformer_is_blind_to_the_order_of_segments():
    """As its model card says; the other backbones are not. Within a segment, all see order through dynamic appearance."""
    for name in FAMILY:
        model, clip = make(name, blocks=1), clips()
        with torch.inference_mode():
            scores, turned, within = model(clip), model(clip.flip(1)), model(clip.flip(2))
        assert ((turned - scores).abs().max() < 1e-5 * scores.std()) == (name == "da-vit-b"), name
        assert (within - scores).abs().max() > 1e-3 * scores.std(), name
    assert "blind to the order of segments" in " ".join((da_vit.__doc__ or "").split())


@pytest.mark.parametrize("name", FAMILY)
def test_other_sizes_of_frame(name):
    model = make(name)
    clip = clips(replace(SPEC, height=64, width=32, short_side=64))
    with torch.inference_mode():
        assert torch.isfinite(model(clip)).all()
    with pytest.raises(FlowlessError, match="at least 32"):
        model(clips(replace(SPEC, height=31)))


@pytest.mark.parametrize("name", FAMILY)
def test_checkpoints(tmp_path, name):
    model = make(name, da_subspace=2)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, model_name=name, recipe={}, spec=SPEC, labels=tuple("abcde"), metrics={})
    loaded = load_checkpoint(path).model
    assert loaded.config["da_subspace"] == 2
    with torch.inference_mode():
        torch.testing.assert_close(loaded(clips()), model(clips()), rtol=0, atol=0)


def test_invalid_options_are_refused():
    for frames, subspace in ((4, 3), (3, 2), (1, 1)):
        with pytest.raises(FlowlessError, match=f"da_subspace is {subspace} for segments of {frames}"):
            make("da-tsm-r18", spec=replace(SPEC, frames_per_segment=frames), da_subspace=subspace)
    refused: list[tuple[Any, str]] = [
        ({"da_kernel": 8}, "da_kernel is 8; it must be odd"),
        ({"da_kernel": 33}, "da_kernel is 33; it must be a whole number from 1 to 31"),
        ({"da_stride": 0}, "da_stride is 0"),
        ({"da_mlp": 8}, "da_mlp is 8; it must be a whole number from 1 to 7"),
    ]
    for options, message in refused:
        with pytest.raises(FlowlessError, match=message):
            make("da-tsm-r18", **options)
    with pytest.raises(FlowlessError, match="no ImageNet weights for X3D"):
        build_model("da-x3d-xs", classes=5, spec=SPEC, pretrained=True)
    with pytest.raises(FlowlessError, match=r"width is 0\.25"):
        build_model("da-vit-b", classes=5, spec=SPEC, width=0.25, pretrained=True)
    with pytest.raises(FlowlessError, match="da-x3d-xs"):
        build_model("da-x3d-r50", classes=5, spec=SPEC)


def test_x3d_as_published():
    model = X3D()
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert [block.mix.out_channels for block in blocks] == [54] * 3 + [108] * 5 + [216] * 11 + [432] * 7
    assert [index for index, block in enumerate(blocks) if block.mix.stride == (1, 2, 2)] == [0, 3, 8, 19]
    squeezed = {module.excite.out_channels: module.reduce.out_channels for module in model.modules() if isinstance(module, Squeeze)}
    assert squeezed == {54: 8, 108: 8, 216: 16, 432: 32}
    # In every other block of a stage, from its first.
    assert [isinstance(block.squeeze, Squeeze) for block in blocks[:8]] == [True, False, True, True, False, True, False, True]


def test_x3d_block_equals_its_formula(reference):
    """One block against its formula, on a single frame, where a 3x3x3 convolution reduces to its middle slice."""
    torch.manual_seed(0)
    block: Any = randomised(Block(8, 16, stride=2, squeeze=True).double())
    x = torch.randn(2, 8, 1, 9, 7, dtype=torch.double)
    state = {name: value.numpy() for name, value in block.state_dict().items()}

    def point(y, name, bias=None):
        return np.einsum("kihw,oi->kohw", y, state[f"{name}.weight"][:, :, 0, 0, 0]) + (0 if bias is None else bias[:, None, None])

    frame = x[:, :, 0].numpy()
    y = np.maximum(reference.batch_norm(point(frame, "expand"), state, "expand_norm"), 0)
    taps = state["mix.weight"][:, :, 1]
    y = np.concatenate([reference.conv2d(y[:, i : i + 1], taps[i : i + 1], stride=2, padding=1) for i in range(y.shape[1])], 1)
    y = reference.batch_norm(y, state, "mix_norm")
    pooled = y.mean((2, 3), keepdims=True)
    gate = point(
        np.maximum(point(pooled, "squeeze.reduce", state["squeeze.reduce.bias"]), 0), "squeeze.excite", state["squeeze.excite.bias"]
    )
    y = y / (1 + np.exp(-gate))
    y = y / (1 + np.exp(-y))
    y = reference.batch_norm(point(y, "restore"), state, "restore_norm")
    short = reference.batch_norm(point(frame[:, :, ::2, ::2], "shortcut.0"), state, "shortcut.1")
    with torch.inference_mode():
        np.testing.assert_allclose(block(x)[:, :, 0], np.maximum(short + y, 0), atol=1e-10)


def test_the_sequence_of_the_transformer():
    """Without blocks the features are the normalised patches plus positions, with the same table for every segment."""
    torch.manual_seed(0)
    model = ClipTransformer(height=32, width=48, scale=0.25).double().eval()
    x = torch.randn(2, 4, 3, 32, 48, dtype=torch.double)
    full = model(x)
    with torch.inference_mode():
        # In joint attention a segment's features do not depend on the order of the others, but on their content.
        torch.testing.assert_close(model(x.flip(1)), full.flip(1))
        assert (model(torch.cat([x[:, :3], x[:, :1]], 1))[:, 0] - full[:, 0]).abs().max() > 1e-6
        model.blocks = Blocks()
        patches = model.patch(x.flatten(0, 1)).flatten(2).transpose(1, 2) + model.positions
        torch.testing.assert_close(model(x), model.norm(patches).mean(1).unflatten(0, (2, 4)))


def test_pretrained_transformer(tmp_path):
    donor: Any = timm.create_model("vit_base_patch16_224", depth=2)
    save_file(donor.state_dict(), tmp_path / "vit.safetensors")
    weights = {"blocks": 2, "pretrained_path": tmp_path / "vit.safetensors"}
    model = ClipTransformer(height=224, width=224, **weights)
    torch.testing.assert_close(model.positions.detach(), donor.pos_embed.detach()[:, 1:])
    torch.testing.assert_close(model.blocks.get_parameter("1.mlp.fc2.weight").detach(), donor.blocks[1].mlp.fc2.weight.detach())
    assert ClipTransformer(height=160, width=192, **weights).positions.shape == (1, 120, 768)
    # It equals timm's network on one frame, both without a class token.
    x = torch.randn(1, 1, 3, 224, 224)
    donor.cls_token, donor.num_prefix_tokens = None, 0
    donor.pos_embed = nn.Parameter(model.positions.detach())
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x)[:, 0], donor.eval().forward_features(x[:, 0]).mean(1), rtol=1e-4, atol=1e-5)


def test_parameter_groups():
    for name in FAMILY:
        model = make(name)
        groups = {group["name"]: group for group in parameter_groups(model, head_decay=5.0, projection_rate=3.0)}
        grouped = [id(value) for group in groups.values() for value in group["params"]]
        assert sorted(grouped) == sorted(id(value) for value in model.parameters())
        ours = {id(value) for part in ("projection_weight", "projection_bias") for value in groups[part]["params"]}
        assert ours == {id(value) for value in model.projection.parameters()}
        assert (groups["projection_weight"]["lr_factor"], groups["projection_bias"]["decay_factor"]) == (3.0, 0.0)
        # Only the classifier has five times the rate and decay, not the linear layers inside a transformer.
        assert [id(value) for value in groups["lr5_weight"]["params"]] == [id(model.head.pred.weight)]
        assert (groups["lr5_weight"]["lr_factor"], groups["lr5_weight"]["decay_factor"]) == (5.0, 5.0)
        assert all(value.dim() == 1 for value in groups["bn"]["params"])

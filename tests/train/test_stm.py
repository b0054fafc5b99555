"""STM against NumPy float64, its variants, and its size against the paper's Table 4. (Tables 6 and 10: test_stm_ablations.py.)"""

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
from flowless.train.checkpoints import load_checkpoint
from flowless.train.loop.fit import fit
from flowless.train.loop.optimizer import build_optimizer, parameter_groups, set_rate
from flowless.train.models import build_model
from flowless.train.models.flops import size_of
from flowless.train.models.layers.stm_block import ChannelwiseMotion, ChannelwiseTemporalConv, SpatioTemporalMotion
from flowless.train.models.options import STMOptions
from flowless.train.recipes import find_recipe

SPEC = ClipSpec(segments=4, frames_per_segment=1, height=32, width=32, short_side=32)
EIGHT = ClipSpec(frames_per_segment=1)
CLASSES = 174
FIXED_KERNEL = torch.tensor([0.0, 1.0, 1.0])[:, None]


def clips(spec=SPEC, *, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8, generator=generator)


def randomised(model, *, seed=0):
    """Give batch norms, temporal weights and motion filters random values, as in a trained network."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.get_buffer("running_mean"), 0, 0.2)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
        if isinstance(module, ChannelwiseTemporalConv) and module.weight is not None:
            nn.init.normal_(module.weight)
        if isinstance(module, ChannelwiseMotion) and module.move is not None:
            nn.init.normal_(module.move.weight, 0, 0.5)
    return model.eval()


def make(name="stm-r18", *, spec=SPEC, width=0.25, **options):
    torch.manual_seed(1)
    return build_model(name, classes=5, spec=spec, width=width, **options)


def state_of(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


def blocks_of(model) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, SpatioTemporalMotion)]


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_equation_1(reference, segments):
    conv = randomised(ChannelwiseTemporalConv(6, segments=segments)).double()
    x = torch.randn(2 * segments, 6, 4, 3, dtype=torch.double)
    wanted = reference.channelwise_temporal(x.numpy(), conv.weight.detach().numpy(), segments)
    np.testing.assert_allclose(conv(x).detach(), wanted, atol=1e-12)


@pytest.mark.parametrize(("segments", "channels", "out", "stride"), [(2, 16, 16, 1), (4, 64, 64, 1), (3, 128, 96, 2)])
def test_equation_2(reference, segments, channels, out, stride):
    module = randomised(ChannelwiseMotion(channels, out, segments=segments, stride=stride)).double()
    assert module.reduce.out_channels == max(4, channels // 16)
    x = torch.randn(2 * segments, channels, 6, 5, dtype=torch.double)
    weights = [module.get_parameter(f"{name}.weight").detach().numpy() for name in ("reduce", "move", "restore")]
    ours = module(x).detach()
    np.testing.assert_allclose(ours, reference.channelwise_motion(x.numpy(), *weights, segments=segments, stride=stride), atol=1e-12)
    assert ours.abs().max() > 0.1
    assert not ours[segments - 1 :: segments].any(), "the last segment has no next one"


@pytest.mark.parametrize(
    ("name", "layer", "stride"),
    [("stm-r50", "layer1.1", 1), ("stm-r50", "layer2.0", 2), ("stm-r18", "layer1.0", 1), ("stm-r18", "layer3.0", 2)],
)
def test_stm_block_equals_the_reference(reference, name, layer, stride):
    block = randomised(make(name).get_submodule(f"backbone.{layer}")).double()
    channels = block.get_parameter("conv1.weight").shape[1]
    x = torch.randn(2 * SPEC.segments, channels, 6, 8, dtype=torch.double).relu()
    numpy_block = reference.stm_block if name == "stm-r50" else reference.stm_basic_block
    wanted = numpy_block(x.numpy(), state_of(block), SPEC.segments, stride=stride)
    np.testing.assert_allclose(block(x).detach(), wanted, atol=1e-10)


def test_cstm_starts_as_a_shift_and_cmm_as_a_difference(reference):
    x = torch.randn(8, 16, 3, 3, dtype=torch.double)
    conv = ChannelwiseTemporalConv(16, segments=4).double()
    np.testing.assert_array_equal(conv(x).detach(), reference.shift(x.numpy(), 4))
    motion = ChannelwiseMotion(16, 16, segments=4, stride=1).double()
    still = torch.randn(1, 16, 3, 3, dtype=torch.double).expand(8, -1, -1, -1)
    assert not motion(still).any(), "static segments have no motion"


def test_the_frequency_degenerated_variant_is_sums_and_differences():
    """Section 3.3: with kernels [0, 1, 1] and identities, CSTM adds neighbouring segments and CMM subtracts them, as with stm_fixed."""
    x = torch.randn(2, 4, 32, 5, 6, dtype=torch.double)
    after = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)
    flat = x.flatten(0, 1)
    for fixed in (True, False):
        temporal = ChannelwiseTemporalConv(32, segments=4, fixed=fixed).double()
        motion = ChannelwiseMotion(32, 32, segments=4, stride=1, options=STMOptions(stm_fixed=fixed)).double()
        if not fixed:
            with torch.no_grad():
                temporal.weight.copy_(FIXED_KERNEL.expand(3, 32))  # type: ignore[union-attr]
        assert (motion.move is None) == (temporal.weight is None) == fixed
        torch.testing.assert_close(temporal(flat), (x + after).flatten(0, 1), rtol=0, atol=0)
        change = nn.functional.conv2d((x - after).flatten(0, 1), motion.reduce.weight).unflatten(0, (2, 4))
        change[:, -1] = 0
        torch.testing.assert_close(motion(flat), nn.functional.conv2d(change.flatten(0, 1), motion.restore.weight))


def test_the_degenerated_network_equals_the_learnable_one_with_those_kernels():
    fixed, learnable = randomised(make(stm_fixed=True)), randomised(make())
    missing, unexpected = learnable.load_state_dict(fixed.state_dict(), strict=False)
    assert not unexpected
    assert {name.rsplit(".", 2)[1] for name in missing} == {"temporal", "move"}
    for block in blocks_of(learnable):
        with torch.no_grad():
            block.temporal.weight.copy_(FIXED_KERNEL.expand_as(block.temporal.weight))
            block.motion.get_parameter("move.weight").zero_()[:, :, 1, 1] = 1
    with torch.inference_mode():
        torch.testing.assert_close(learnable(clips()), fixed(clips()))
        assert (fixed(clips()) - fixed(clips().flip(1))).abs().max() > 1e-3


def test_concatenation_starts_as_the_sum():
    added, joined = randomised(make()), randomised(make(stm_fusion="concat"))
    missing, _ = joined.load_state_dict(added.state_dict(), strict=False)
    assert len(missing) == 8
    with torch.inference_mode():
        torch.testing.assert_close(joined(clips()), added(clips()), rtol=1e-4, atol=1e-5)
    # Section 5.2: the concatenated 2C channels are reduced to C.
    assert joined.get_parameter("backbone.layer4.0.conv2.join.weight").shape == (128, 256, 1, 1)


@pytest.mark.parametrize(
    ("placement", "layers"),
    [
        ("all", {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}),  # Table 9: 16 blocks
        ("one-per-stage", {"layer1": 1, "layer2": 1, "layer3": 1, "layer4": 1}),
        ("stage2", {"layer1": 1}),
        ("stage5", {"layer4": 1}),
    ],
)
def test_table_9_placement(placement, layers):
    model = make("stm-r50", stm_placement=placement)
    names = [name for name, module in model.named_modules() if isinstance(module, SpatioTemporalMotion)]
    assert {layer: sum(f".{layer}." in name for name in names) for layer in layers} == layers
    assert len(names) == sum(layers.values())
    if placement != "all":
        assert all(name.endswith("0.conv2") for name in names), "the first block of its stage"


@pytest.mark.parametrize("options", [{}, {"stm_fixed": True}, {"stm_fusion": "concat"}, {"stm_placement": "stage4"}])
@pytest.mark.parametrize("name", ["stm-r18", "stm-r50"])
def test_gradients_reach_every_parameter(name, options):
    model = randomised(make(name, dropout=0.0, **options)).train()
    model(clips()).square().sum().backward()
    without = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.abs().max() > 0]
    assert not without
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


def test_a_pretrained_network_starts_unchanged(tmp_path):
    """With ImageNet weights, an STM block with temporal weights (0, 1, 0) equals the residual block, and CMM has a gradient."""
    torch.manual_seed(3)
    donor = randomised(timm.create_model("resnet18"))
    save_file(donor.state_dict(), tmp_path / "weights.safetensors")
    model = build_model("stm-r18", classes=5, spec=SPEC, pretrained_path=tmp_path / "weights.safetensors").eval()
    frames = torch.randn(2, 4, 1, 3, 64, 64)
    for block in blocks_of(model):
        block.temporal.weight.data.copy_(torch.tensor([0.0, 1.0, 0.0])[:, None].expand_as(block.temporal.weight))
    with torch.inference_mode():
        wanted = donor.forward_head(donor.forward_features(frames[:, :, 0].flatten(0, 1)), pre_logits=True)
        torch.testing.assert_close(model.features(frames).flatten(0, 1), wanted, rtol=1e-4, atol=1e-4)
    model(clips()).square().sum().backward()
    for block in blocks_of(model):
        assert not block.motion.restore.weight.any()
        gradient = block.motion.restore.weight.grad
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_weight_decay_of_the_parameter_groups():
    groups = {group["name"]: group for group in parameter_groups(make())}
    assert set(groups) == {"normal_weight", "bn", "lr5_weight", "lr10_bias", "channelwise"}
    shapes = {tuple(value.shape) for value in groups["channelwise"]["params"]}
    assert shapes == {(3, 16), (3, 32), (3, 64), (3, 128), (4, 1, 3, 3), (8, 1, 3, 3)}
    optimizer = build_optimizer(make(), find_recipe("stm-r50/something-v1"))
    seen = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert seen["channelwise"] == (0.01, 0.0)
    assert seen["normal_weight"] == seen["lr5_weight"] == (0.01, 5e-4)


def test_recipe_of_the_paper():
    recipe = find_recipe("stm-r50/something-v1")
    assert (recipe.epochs, recipe.steps, recipe.batch_size, recipe.weight_decay, recipe.momentum) == (70, (30, 40, 60), 64, 5e-4, 0.9)
    assert [recipe.rate_at(epoch) for epoch in (0, 29, 30, 40, 60)] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-5])
    assert (recipe.frames_per_segment, recipe.segments) == (1, 8)
    small = find_recipe("stm-r50/hmdb51")
    assert (small.epochs, small.steps, small.lr, small.frames_per_segment) == (50, (15, 30, 45), 0.001, 1)
    assert find_recipe("stm-r18/moving-shapes").optimiser == "adamw"


def test_invalid_options_are_refused():
    with pytest.raises(FlowlessError, match=r"'stm-r101'; it must be one of .*stm-r50"):
        make("stm-r101")
    with pytest.raises(FlowlessError, match=r"stm_placement is 'stage1'; it must be one of all, one-per-stage, stage2"):
        make(stm_placement="stage1")
    with pytest.raises(
        FlowlessError, match=r"stm_placement is 'stage1'; it must be.*stm_fusion is 'product'; it must be one of sum, concat"
    ):
        find_recipe("stm-r18/tiny", stm_placement="stage1", stm_fusion="product")


# Model, segments; the paper's parameters in millions and GMAC (Table 4), and the counted ones.
TABLE_4 = [
    ("stm-r18", 8, 11.0, 14.6, 11.360, 14.633),
    ("stm-r34", 8, 20.5, 29.4, 21.545, 29.552),
    ("stm-r50", 8, 24.0, 33.3, 24.035, 33.018),
    ("stm-r50", 16, 24.0, 66.5, 24.035, 66.035),
]


@pytest.mark.parametrize(("name", "segments", "paper_millions", "paper_gigas", "millions", "gigas"), TABLE_4)
def test_table_4(name, segments, paper_millions, paper_gigas, millions, gigas):
    spec = replace(EIGHT, segments=segments)
    size = size_of(name, classes=CLASSES, spec=spec)
    backbone = size_of(name.replace("stm", "tsn"), classes=CLASSES, spec=spec)
    assert size.parameters / 1e6 == pytest.approx(millions, abs=1e-3)
    assert size.macs / 1e9 == pytest.approx(gigas, abs=1e-3)
    assert size.macs / 1e9 == pytest.approx(paper_gigas, rel=0.01)
    if name == "stm-r50":
        assert size.parameters / 1e6 == pytest.approx(paper_millions, rel=0.01)
        # Section 3.4: 0.8 % more parameters than the backbone, 1.2 % more FLOPs (from 23.8 M and 32.9 G).
        assert 0.005 < size.parameters / backbone.parameters - 1 < 0.009
        assert 0.009 < size.macs / backbone.macs - 1 < 0.013
    else:
        # Table 4's parameters for -18 and -34 are fewer than those of their backbones, which have 11.27 M and 21.37 M with 174 classes;
        # a block that adds to them cannot have fewer. The FLOPs agree.
        assert paper_millions < backbone.parameters / 1e6 < size.parameters / 1e6


@pytest.mark.parametrize("options", [{}, {"stm_fixed": True, "stm_fusion": "concat", "precision": "bf16"}])
def test_training_and_loading_the_checkpoint(tmp_path, train_index, val_index, options):
    fields = {"segments": 4, "size": 32, "short_side": 32, "epochs": 1, "batch_size": 8, "threads": 1, "accelerator": "cpu"}
    recipe = find_recipe("stm-r18/moving-shapes", **fields, **options)
    result = fit(recipe, index=train_index, val_index=val_index, out=tmp_path / "run")
    loaded = load_checkpoint(result.last)
    assert loaded.model.config["stm_fixed"] == options.get("stm_fixed", False)
    assert loaded.model.config["stm_fusion"] == options.get("stm_fusion", "sum")
    with torch.inference_mode():
        assert torch.isfinite(loaded.model(clips(loaded.spec))).all()


def squares(count, generator):
    """Return clips of squares that move left (0) or right (1) over a static noisy background, and the labels: they differ in order only."""
    clip = torch.randint(60, 120, (count, 1, 1, 32, 32, 3), generator=generator).expand(count, *SPEC.shape).clone()
    labels = torch.randint(0, 2, (count,), generator=generator)
    for number, label in enumerate(labels.tolist()):
        left, top = (int(torch.randint(2, most, (), generator=generator)) for most in (12, 24))
        colour = torch.randint(150, 256, (3,), generator=generator)
        for t in range(SPEC.segments):
            at = left + 3 * (t if label else SPEC.segments - 1 - t)
            clip[number, t, 0, top : top + 8, at : at + 8] = colour
    return clip.to(torch.uint8), labels


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"stm_fixed": True}])
def test_stm_learns_direction_from_scratch(options):
    """60 steps of 20 clips. Measured top-1 on 200 unseen clips: 100 % with both options; TSN, which is blind to order, 45 %."""
    recipe, generator = find_recipe("stm-r18/moving-shapes"), torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    model = build_model("stm-r18", classes=2, spec=SPEC, width=0.25, dropout=0.0, **options).train()
    optimizer = build_optimizer(model, recipe)
    for step in range(60):
        set_rate(optimizer, recipe.rate_at(recipe.epochs * step / 60))
        clip, labels = squares(20, generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(clip), labels).backward()
        optimizer.step()
    clip, labels = squares(200, generator)
    with torch.inference_mode():
        assert (model.eval()(clip).argmax(1) == labels).float().mean() > 0.9


def test_bf16_input_gives_bf16_output():
    conv = ChannelwiseTemporalConv(8, segments=2)
    assert conv(torch.randn(2, 8, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16

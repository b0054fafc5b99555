"""The models and their layers against NumPy float64. (The papers' sizes: test_paper_tables.py.)"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.loop.optimizer import build_optimizer, freeze_batch_norm, norms_to_freeze, parameter_groups, set_rate
from flowless.train.models import FAMILIES, MODELS, MotionRecognizer, build_model
from flowless.train.models.backbones.timm_backbones import widen
from flowless.train.models.layers.heads import VariousTimescaleAggregationPooling
from flowless.train.models.layers.temporal_shift import ShiftedConv, from_next, from_previous, temporal_shift, zero_last
from flowless.train.recipes import find_recipe

SMALL = ClipSpec(segments=4, frames_per_segment=3, height=32, width=32, short_side=32)


def clips(spec, *, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8, generator=generator)


def randomised(model: Any) -> Any:
    """Give batch norms random statistics and weights, as trained ones have."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize(("channels", "segments"), [(16, 4), (8, 8), (20, 3), (7, 2)])
def test_shift(reference, channels, segments):
    x = np.random.default_rng(0).standard_normal((2 * segments, channels, 3, 2))
    ours = temporal_shift(torch.from_numpy(x), segments=segments)
    np.testing.assert_array_equal(ours, reference.shift(x, segments))


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_neighbouring_segments(segments):
    x = np.random.default_rng(0).standard_normal((3, segments, 4, 2, 3))
    zero = np.zeros_like(x[:, :1])
    flat = torch.from_numpy(x.reshape(-1, 4, 2, 3))
    for ours, wanted in (
        (from_next, np.concatenate([x[:, 1:], zero], 1)),
        (from_previous, np.concatenate([zero, x[:, :-1]], 1)),
        (zero_last, np.concatenate([x[:, :-1], zero], 1)),
    ):
        np.testing.assert_array_equal(ours(flat, segments=segments), wanted.reshape(flat.shape))


@pytest.mark.parametrize("segments", [2, 4, 8, 16])
def test_vap(reference, segments):
    head = VariousTimescaleAggregationPooling(24, segments=segments, classes=5, dropout=0.5).double().eval()
    features = torch.randn(3, segments, 24, dtype=torch.double)
    weights = [head.get_parameter(name).detach().numpy() for name in ("TES.0.weight", "TES.2.weight", "pred.weight", "pred.bias")]
    scores, timescales, pooled = reference.vap(features.numpy(), *weights)
    np.testing.assert_allclose(head(features).detach(), scores, atol=1e-12)
    np.testing.assert_allclose(head.timescale_weights(features).detach(), timescales, atol=1e-12)
    np.testing.assert_allclose(head.pooled(features), pooled, atol=0)
    assert timescales.shape == (3, segments - 1)


def test_vap_pools_segments_that_lie_apart():
    head = VariousTimescaleAggregationPooling(1, segments=8, classes=2, dropout=0)
    pooled = head.pooled(torch.arange(1.0, 9.0).view(1, 8, 1)).flatten().tolist()
    # Figure 4 of the paper: {1..8} | {1,3,5,7} {2,4,6,8} | {1,5} {2,6} {3,7} {4,8}.
    assert pooled == [8, 7, 8, 5, 6, 7, 8]


@pytest.mark.parametrize("segments", [1, 3, 6])
def test_vap_refuses_segments_that_are_not_a_power_of_two(segments):
    with pytest.raises(FlowlessError, match=f"segments is {segments}"):
        VariousTimescaleAggregationPooling(8, segments=segments, classes=2, dropout=0)


def test_widened_kernel_is_the_mean_over_rgb():
    kernel = torch.randn(5, 3, 7, 7)
    wide = widen(kernel, 6)
    np.testing.assert_allclose(wide, np.repeat(kernel.numpy().mean(1, keepdims=True), 6, 1), atol=1e-6)


def test_pan_lite_equals_the_reference(reference):
    torch.manual_seed(1)
    model = build_model("pan-lite-r18", classes=7, spec=SMALL, width=0.25).double()
    randomised(model)
    torch.nn.init.normal_(model.persistence.bias)  # type: ignore[union-attr]
    model.eval()
    clip = clips(SMALL)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    wanted = reference.pan_lite_r18(clip.numpy(), state, SMALL)
    assert np.abs(wanted).max() > 0.1
    with torch.inference_mode():
        # Frames in float64 check the algebra; uint8 pixels, which the model casts to float32, check the whole path.
        exact = (clip.double().movedim(-1, -3) - model.mean.view(3, 1, 1)) / model.std.view(3, 1, 1)
        np.testing.assert_allclose(model.forward_frames(exact), wanted, atol=1e-6)
        np.testing.assert_allclose(model.float()(clip), wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["tsn-r18", "tsm-r18"])
def test_pixels_and_normalised_frames_agree(name):
    model = build_model(name, classes=5, spec=SMALL, width=0.25).eval()
    clip = clips(SMALL)
    with torch.inference_mode():
        torch.testing.assert_close(model.forward_frames(model.normalise(model.as_frames(clip))), model(clip), rtol=1e-4, atol=1e-5)


#: Family -> whether its scores depend on the order of segments, and on that of the frames inside each (None: one frame per segment).
SEES: dict[str, tuple[bool, bool | None]] = {
    "tsn": (False, None),
    "tsm": (True, None),
    "stm": (True, None),
    "pan-lite": (True, True),
    "pan-rgb": (True, None),
    "pan-pa": (True, True),
    "pan-full": (True, True),
    "pan-en": (True, True),
    "da-tsm": (True, True),
    "da-x3d": (True, True),
    "da-vit": (False, True),  # joint attention has no position in time
    "disentangling": (False, True),  # its segments' scores are averaged
}
#: Families whose width is not the ResNets'.
WIDTHS = {"da-x3d": 1.0, "da-vit": 0.09}

#: The first model of each family.
FIRST = {family: next(name for name in MODELS if name.startswith(f"{family}-")) for family in FAMILIES}


def test_the_table_of_order_has_every_family():
    assert set(SEES) == set(FAMILIES)


@pytest.mark.parametrize(
    ("family", "axis", "seen"),
    [(family, 1 + place, seen) for family, order in SEES.items() for place, seen in enumerate(order) if seen is not None],
)
def test_untrained_models_see_the_order_of_segments_and_frames(family, axis, seen):
    """If the untrained model is blind to order, the first gradients do not depend on it either."""
    spec = replace(SMALL, frames_per_segment=1) if SEES[family][1] is None else SMALL
    spec = replace(spec, segments=2, height=40, width=40, short_side=40) if family == "disentangling" else spec
    torch.manual_seed(0)
    model = build_model(FIRST[family], classes=5, spec=spec, width=WIDTHS.get(family, 0.25), dropout=0.0).train()
    clip = clips(spec, batch=8)
    with torch.no_grad():
        scores, backwards = model(clip), model(clip.flip(axis))
    effect = ((scores - backwards).abs().mean() / scores.std(0).mean()).item()
    assert effect > 0.1 if seen else effect < 1e-3


class OpsOf(TorchDispatchMode):
    """Records the dtype of the frames that reach the PA op, and the size of the largest float tensor that any operator returns."""

    def __init__(self):
        super().__init__()
        self.frames, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.flowless.persistence.default:
            self.frames.append(args[0].dtype)
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point() and out._base is None:
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize(
    ("family", "pa"),
    # pan-en has the networks of all other PAN models.
    [(family, {}) for family in FAMILIES] + [("pan-en", pa) for pa in ({"pa_depth": 0}, {"pa_depth": 2}, {"pa_encoding": "e2"})],
)
def test_uint8_and_float_pixels_give_equal_scores(family, pa):
    """The scores are equal bit for bit; uint8 differences that wrapped around, or another normalisation, would change them."""
    spec = replace(SMALL, height=40, width=40, short_side=40) if family == "disentangling" else SMALL
    torch.manual_seed(0)
    model = build_model(FIRST[family], classes=5, spec=spec, width=WIDTHS.get(family, 0.25), **pa).eval()
    clip = clips(spec)
    with torch.inference_mode():
        found = model(clip)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            wanted = model(clip)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["pan-lite-r18", "pan-full-r18"])
def test_the_pa_op_gets_uint8(name):
    spec = replace(SMALL, frames_per_segment=6, height=64, width=64, short_side=64)
    model = build_model(name, classes=5, spec=spec, width=0.125, blocks=1).train()
    clip = clips(spec)
    with OpsOf() as ops:
        model.branch_scores(clip).sum().backward()
    assert ops.frames == [torch.uint8]
    # No copy of the clip in floats, which would be four times its size.
    assert ops.largest < clip.numel()
    model.eval()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(clip), model(clip))


def test_the_backbone_sees_rgb_and_the_pa_maps():
    model = build_model("pan-lite-r18", classes=5, spec=SMALL, width=0.25).eval()
    assert isinstance(model, MotionRecognizer)
    clip = clips(SMALL)
    with torch.inference_mode():
        maps = model.motion(clip)
        seen = model._input_of_pixels(clip.float())
    assert maps.shape == (2, 4, 2, 32, 32)
    torch.testing.assert_close(seen[:, :, 3:], maps)
    torch.testing.assert_close(seen[:, :, :3], model.normalise(model.as_frames(clip[:, :, 0])))


@pytest.mark.parametrize(("name", "shifts"), [("tsm-r18", 8), ("tsm-r50", 16), ("pan-lite-r101", 2 + 2 + 12 + 2)])
def test_number_of_shifts(name, shifts):
    model = build_model(name, classes=5, spec=ClipSpec())
    assert sum(isinstance(module, ShiftedConv) for module in model.modules()) == shifts


def test_official_parameter_groups():
    groups = {group["name"]: group for group in parameter_groups(build_model("pan-lite-r50", classes=174, spec=ClipSpec()))}
    counts = {name: len(group["params"]) for name, group in groups.items()}
    factors = {name: (group["lr_factor"], group["decay_factor"]) for name, group in groups.items()}
    assert counts == {"first_conv_weight": 1, "first_conv_bias": 1, "normal_weight": 53, "bn": 106, "lr5_weight": 3, "lr10_bias": 1}
    assert factors == {
        "first_conv_weight": (5, 1),
        "first_conv_bias": (10, 0),
        "normal_weight": (1, 1),
        "bn": (1, 0),
        "lr5_weight": (5, 1),
        "lr10_bias": (10, 0),
    }
    assert tuple(groups["first_conv_weight"]["params"][0].shape) == (8, 3, 7, 7)


@pytest.mark.parametrize("name", ["tsn-r18", "tsm-r18"])
def test_every_parameter_is_in_one_group(name):
    model = build_model(name, classes=5, spec=SMALL, width=0.25)
    groups = parameter_groups(model)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["name"] for group in groups} == {"normal_weight", "bn", "lr5_weight", "lr10_bias"}


def test_learning_rates_of_the_optimiser():
    model = build_model("pan-lite-r18", classes=5, spec=SMALL, width=0.25)
    optimizer = build_optimizer(model, find_recipe("pan-lite-r50/something-v1"))
    set_rate(optimizer, 0.02)
    seen = {group["name"]: (group["lr"], group["weight_decay"], group["nesterov"], group["momentum"]) for group in optimizer.param_groups}
    assert seen["lr5_weight"] == (0.1, 1e-4, False, 0.9)
    assert seen["lr10_bias"] == (0.2, 0.0, False, 0.9)
    assert seen["bn"] == (0.02, 0.0, False, 0.9)


def test_partial_bn_freezes_all_but_the_first_batch_norm():
    model = build_model("tsn-r18", classes=5, spec=SMALL, width=0.25).train()
    freeze_batch_norm(model, norms_to_freeze(model, with_statistics=False))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert [norm.training for norm in norms] == [True] + [False] * (len(norms) - 1)
    assert norms[0].weight.requires_grad
    assert not norms[1].weight.requires_grad


def test_pretrained_weights_from_a_file(tmp_path):
    torch.manual_seed(3)
    donor: Any = timm.create_model("resnet18")
    save_file(donor.state_dict(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "weights.pth")
    for file in ("weights.safetensors", "weights.pth"):
        model = build_model("pan-lite-r18", classes=5, spec=SMALL, pretrained_path=tmp_path / file)
        own = model.state_dict()
        torch.testing.assert_close(own["backbone.conv1.weight"], widen(donor.conv1.weight.detach(), 5))
        torch.testing.assert_close(own["backbone.layer4.1.conv1.net.weight"], donor.layer4[1].conv1.weight.detach())
    assert model.persistence.weight.std().item() == pytest.approx(0.001, rel=0.1)  # type: ignore[union-attr]


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(timm.create_model("resnet34").state_dict(), tmp_path / "other.safetensors")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "shapes.safetensors")
    (tmp_path / "text.pth").write_text("not weights")
    for name in ("other.safetensors", "shapes.safetensors", "text.pth", "missing.pth"):
        with pytest.raises(FlowlessError, match=name):
            build_model("tsn-r18", classes=5, spec=SMALL, pretrained_path=tmp_path / name)


def test_invalid_arguments_are_refused():
    with pytest.raises(FlowlessError, match=r"'i3d'.*pan-lite-r50"):
        build_model("i3d", classes=5, spec=SMALL)
    with pytest.raises(FlowlessError, match="frames_per_segment is 1"):
        build_model("pan-lite-r18", classes=5, spec=ClipSpec(frames_per_segment=1))
    with pytest.raises(FlowlessError, match=r"width is 0\.5"):
        build_model("tsn-r18", classes=5, spec=SMALL, width=0.5, pretrained=True)
    for name, value in (("classes", 0), ("width", 0), ("width", 4.5), ("dropout", 1)):
        asked: dict[str, Any] = {"classes": 5, name: value}
        with pytest.raises(FlowlessError, match=f"tsn-r18: {name} is {value}; it must be "):
            build_model("tsn-r18", spec=SMALL, **asked)
    with pytest.raises(FlowlessError, match="blocks is 1"):
        build_model("tsn-r18", classes=5, spec=SMALL, blocks=1, pretrained=True)
    for blocks in (-1, 24, 1.0):
        with pytest.raises(FlowlessError, match=f"blocks is {blocks}"):
            build_model("tsn-r18", classes=5, spec=SMALL, blocks=blocks)  # type: ignore[arg-type]
    model = build_model("tsn-r18", classes=5, spec=SMALL, width=0.25)
    clip = clips(SMALL)
    for wrong, message in (
        (clip.float(), r"float32 \[2, 4, 3, 32, 32, 3\]; this model takes uint8 \[B, 4, 3, H, W, 3\].*at least 32"),
        (clip[:, :, :, :16], r"\[2, 4, 3, 16, 32, 3\]"),
        (clip[:, :, :2], r"\[2, 4, 2, 32, 32, 3\]"),
        (clip[:, :3], r"\[2, 3, 3, 32, 32, 3\]"),
        (clip[..., :1], r"\[2, 4, 3, 32, 32, 1\]"),
        (clip[0], r"\[4, 3, 32, 32, 3\]"),
    ):
        with pytest.raises(FlowlessError, match=message):
            model(wrong)


@pytest.mark.parametrize(
    ("name", "blocks", "count"),
    [
        ("stm-r18", 1, 4),
        ("tsm-r50", 2, 8),
        ("pan-full-r18", 0, 16),
        ("da-x3d-xs", 2, 8),
        ("da-x3d-xs", 0, 26),
        ("da-vit-b", 2, 2),
        ("da-vit-b", 0, 12),
        ("disentangling-bninception", 2, 3 * 6),
        ("disentangling-bninception", 1, 3 * 3),
        ("disentangling-bninception", 0, 3 * 10),
    ],
)
def test_blocks_per_stage(name, blocks, count):
    model = build_model(name, classes=5, spec=SMALL, width=0.1, blocks=blocks)
    kinds = [type(module).__name__ for name, module in model.named_modules() if "backbone" in name or ".network." in name]
    assert sum(kind in {"BasicBlock", "Bottleneck", "Block", "InceptionModule"} for kind in kinds) == count
    assert model.config["blocks"] == blocks


def test_every_name_builds():
    assert len(MODELS) == 7 * 4 + 3 + 5 + 1
    with torch.device("meta"):
        for name in MODELS:
            build_model(name, classes=2, spec=ClipSpec())

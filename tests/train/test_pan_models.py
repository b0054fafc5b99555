"""The PAN family: branches and their fusion, PA at other depths, other frame sizes, and `flowless fuse`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowless.cli import main
from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.loading.loader import Batch
from flowless.train.checkpoints import fuse_checkpoints, load_checkpoint, save_checkpoint
from flowless.train.loop.fit import fit
from flowless.train.loop.training_module import TrainingModule
from flowless.train.models import FusedRecognizer, MotionOnlyRecognizer, MotionRecognizer, Network, build_model
from flowless.train.models.backbones.timm_backbones import widen
from flowless.train.models.layers.deep_persistence import DeepPersistence, PixelPersistence
from flowless.train.recipes import find_recipe

SPEC = ClipSpec(segments=4, frames_per_segment=3, height=32, width=32, short_side=32)
FAMILY = ("pan-lite-r18", "pan-rgb-r18", "pan-pa-r18", "pan-full-r18", "pan-en-r18")
LABELS = ("a", "b", "c", "d", "e")


def clips(spec=SPEC, *, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8, generator=generator)


def make(name, *, spec=SPEC, seed=1, **options):
    """Build a small model with random batch norms, as in a trained network."""
    torch.manual_seed(seed)
    model = build_model(name, classes=5, spec=spec, width=0.25, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return model.eval()


PA_VARIANTS: tuple[dict[str, Any], ...] = (
    {"pa_encoding": "e2"},
    {"pa_depth": 0},
    {"pa_depth": 2, "pa_encoding": "e2"},
    {"eps_inside": True},
)


def test_the_rgb_branch_has_no_options_of_pa():
    for options in PA_VARIANTS:
        with pytest.raises(FlowlessError, match="pan-rgb-r18: has no option"):
            make("pan-rgb-r18", **options)


# pan-en has the networks of all other PAN models.
@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in FAMILY] + [("pan-en-r18", options) for options in PA_VARIANTS])
def test_pixels_and_normalised_frames_agree(name, options):
    model = make(name, **options)
    clip = clips()
    with torch.inference_mode():
        frames = model.normalise(model.as_frames(clip))
        torch.testing.assert_close(model.forward_frames(frames), model(clip), rtol=1e-4, atol=1e-5)
        assert model.features(frames).shape == (2, 4, 128 * len(model.networks))
        assert model.branch_scores(clip).shape == (len(model.networks), 2, 5)


@pytest.mark.parametrize(("name", "branches"), [("pan-full-r18", ["rgb", "pa"]), ("pan-en-r18", ["lite", "rgb", "pa"])])
def test_fused_scores_are_the_mean_of_the_branches(name, branches):
    model = make(name)
    assert isinstance(model, FusedRecognizer)
    assert list(model.branches) == branches
    clip = clips()
    with torch.inference_mode():
        apart = torch.stack([network(clip) for network in model.networks])
        torch.testing.assert_close(model.branch_scores(clip), apart, rtol=0, atol=0)
        torch.testing.assert_close(model(clip), apart.mean(0))
        assert (apart[0] - apart[-1]).abs().max() > 1e-2
        torch.testing.assert_close(model.motion(clip), model.branches["pa"].motion(clip), rtol=0, atol=0)  # type: ignore[operator]


@pytest.mark.parametrize(("name", "weights"), [("pan-full-r18", (1.0, 3.0)), ("pan-full-r18", (0, 2)), ("pan-en-r18", [1, 2, 0.5])])
def test_fusion_weights(name, weights):
    model, clip = make(name, fusion_weights=weights), clips()
    assert model.config["fusion_weights"] == tuple(weights)
    assert "weights" not in model.state_dict()
    shares = np.array(weights, np.float64) / sum(weights)
    with torch.inference_mode():
        apart = torch.stack([network(clip) for network in model.networks]).double().numpy()
        wanted = np.einsum("n,nbc->bc", shares, apart)
        np.testing.assert_allclose(model(clip), wanted, atol=1e-6)
        np.testing.assert_allclose(model.forward_frames(model.normalise(model.as_frames(clip))), wanted, rtol=1e-4, atol=1e-5)
        # The official code's sum of coefficient times score, divided by the number of models, has the same order.
        official = np.einsum("n,nbc->bc", np.array(weights, np.float64), apart) / len(weights)
        np.testing.assert_array_equal(official.argsort(), wanted.argsort())
        assert np.abs(wanted - apart.mean(0)).max() > 1e-2


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("pan-full-r18", (1.0,), r"fusion_weights is \(1.0,\); there must be one for each of rgb, pa"),
        ("pan-full-r18", (1.0, 1.0, 1.0), "there must be one for each of rgb, pa"),
        ("pan-en-r18", (1.0, 1.0), "there must be one for each of lite, rgb, pa"),
        ("pan-full-r18", (0.0, 0.0), "at least one above 0"),
        ("pan-full-r18", (1.0, -1.0), "they must be numbers from 0 to 1000"),
        ("pan-full-r18", (1.0, float("nan")), "they must be numbers from 0 to 1000"),
        ("pan-full-r18", ("1", "2"), "they must be numbers from 0 to 1000"),
        ("pan-full-r18", 2.0, "they must be numbers from 0 to 1000"),
        ("pan-lite-r18", (1.0, 1.0), "pan-lite-r18: has no option fusion_weights"),
    ],
)
def test_invalid_fusion_weights_are_refused(name, weights, message):
    with pytest.raises(FlowlessError, match=message):
        make(name, fusion_weights=weights)


def test_training_accuracy_counts_the_weighted_scores(train_index):
    """The losses are those of the branches, but accuracy is that of the fused scores."""
    model = make("pan-full-r18", dropout=0.0, fusion_weights=(0.0, 1.0))
    # For every clip rgb scores class 0 highest, by far, and pa class 1.
    for branch, (label, size) in {"rgb": (0, 100.0), "pa": (1, 10.0)}.items():
        model.get_parameter(f"branches.{branch}.head.pred.bias").data[label] = size
    module = TrainingModule(model, small("pan-full-r18", dropout=0.0, fusion_weights=(0.0, 1.0)), index=train_index, val_index=None)
    module.eval().training_step(Batch(clips=clips(batch=4)[:, None], labels=torch.ones(4, dtype=torch.long), ids=list("abcd")), 0)
    sums = module._sums["train"]
    assert (sums.right, sums.count) == (4, 4)


def test_what_each_branch_sees():
    clip = clips()
    other = clip.clone()
    other[:, :, 1:] = clips(seed=7)[:, :, 1:]
    still = clip[:, :, :1].expand_as(clip)
    rgb, pa = make("pan-rgb-r18"), make("pan-pa-r18")
    assert isinstance(rgb, Network)
    assert not isinstance(rgb, MotionRecognizer)
    assert isinstance(pa, MotionOnlyRecognizer)
    with torch.inference_mode():
        # The RGB branch sees only the first frame; the PA branch sees only change, and in static frames none.
        torch.testing.assert_close(rgb(clip), rgb(other), rtol=0, atol=0)
        assert (pa(clip) - pa(other)).abs().max() > 1e-3
        torch.testing.assert_close(pa(still), pa(torch.zeros_like(still)), rtol=0, atol=0)


@pytest.mark.parametrize(("frames", "channels"), [(4, 3), (3, 2), (6, 5)])
def test_the_pa_branch_keeps_a_first_convolution_of_three_channels(tmp_path, frames, channels):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    donor = timm.create_model("resnet18")
    save_file(donor.state_dict(), tmp_path / "weights.safetensors")
    spec = replace(SPEC, frames_per_segment=frames)
    model = build_model("pan-pa-r18", classes=5, spec=spec, pretrained_path=tmp_path / "weights.safetensors")
    kernel = donor.get_parameter("conv1.weight").detach()
    wanted = kernel if frames == 4 else widen(kernel, channels)
    torch.testing.assert_close(model.get_parameter("backbone.conv1.weight").detach(), wanted)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(("height", "width"), [(64, 48), (33, 95)])
def test_other_sizes_of_frame(name, height, width):
    """On frames of another size, a model computes the same as a model built for that size with the same weights."""
    model = make(name)
    spec = replace(SPEC, height=height, width=width, short_side=96)
    twin = make(name, spec=spec, seed=2)
    twin.load_state_dict(model.state_dict())
    clip = clips(spec)
    with torch.inference_mode():
        torch.testing.assert_close(model(clip), twin(clip), rtol=0, atol=0)
    with pytest.raises(FlowlessError, match="at least 32"):
        model(clips(replace(SPEC, height=31)))


@pytest.mark.parametrize("depth", [0, 2, 4])
@pytest.mark.parametrize("encoding", ["e1", "e2"])
def test_pa_at_other_depths_equals_the_reference(reference, depth, encoding):
    """The reference applies the whole stack with biases to every frame, then subtracts; the module convolves differences only."""
    torch.manual_seed(depth)
    module = (DeepPersistence(depth=depth, encoding=encoding, std=0.1) if depth else PixelPersistence(encoding=encoding)).double()
    for name, value in module.named_parameters():
        if "bias" in name:
            nn.init.normal_(value)
    x = torch.randn(2, 3, 3, 9, 7, dtype=torch.double)
    x[1, 1] = x[1, 0]
    features = x.flatten(0, 1).numpy()
    if isinstance(module, DeepPersistence):
        layers = [(module.weight, module.bias), *zip(module.deeper, module.deeper_biases, strict=True)]
        for weight, bias in layers:
            features = reference.conv2d(features, weight.detach().numpy(), padding=3, bias=bias.detach().numpy())
    features = features.reshape(2, 3, *features.shape[1:])
    wanted = np.sqrt(((features[:, 1:] - features[:, :-1]) ** 2).sum(2) + 1e-12)
    with torch.inference_mode():
        maps = module.motion(x)
        np.testing.assert_allclose(maps, wanted, atol=1e-9)
        if encoding == "e2":
            wanted = 1 / (1 + np.exp(-wanted)) * features[:, :-1].mean(2)
        np.testing.assert_allclose(module(x, maps), wanted, atol=1e-9)
        # Pixels with scaled filters give the maps of normalised frames.
        scale = torch.tensor([0.5, 2.0, 3.0], dtype=torch.double)
        torch.testing.assert_close(module.motion(x, scale=scale), module.motion(x * scale.view(3, 1, 1)))


def test_deep_pa_keeps_its_scale_and_has_gradients():
    torch.manual_seed(0)
    module = DeepPersistence(depth=8, std=0.5)
    x = torch.randn(1, 3, 3, 32, 32)
    x[0, 1] = x[0, 0]
    maps = module.motion(x)
    assert 0.3 < maps[0, 1].mean() < 30
    maps.sum().backward()
    for value in (module.weight, *module.deeper):
        assert value.grad is not None
        assert torch.isfinite(value.grad).all()
        assert value.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"), [({"pa_depth": 9}, "pa_depth is 9"), ({"pa_depth": 2, "eps_inside": True}, "pa_depth is 2")]
)
def test_invalid_pa_depths_are_refused(options, message):
    with pytest.raises(FlowlessError, match=message):
        make("pan-lite-r18", **options)
    with pytest.raises(FlowlessError, match="pan-pa: frames_per_segment is 1"):
        make("pan-pa-r18", spec=replace(SPEC, frames_per_segment=1))


def small(name, **changes):
    fields = {"segments": 4, "frames_per_segment": 3, "size": 32, "short_side": 32, "epochs": 1, "batch_size": 8, "threads": 1, "blocks": 1}
    return find_recipe(f"{name}/moving-shapes", **(fields | {"accelerator": "cpu"} | changes))


def test_each_branch_has_the_gradients_of_training_alone(train_index):
    recipe = small("pan-en-r18", dropout=0.0)
    module = TrainingModule(make("pan-en-r18", dropout=0.0), recipe, index=train_index, val_index=None)
    module.train()
    clip, labels = clips(batch=4), torch.tensor([0, 1, 2, 3])
    loss = module.training_step(Batch(clips=clip[:, None], labels=labels, ids=["a", "b", "c", "d"]), 0)
    loss.backward()
    alone = make("pan-en-r18", dropout=0.0).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    total = 0.0
    for ours, network in zip(module.model.networks, alone.networks, strict=True):
        own = F.cross_entropy(network(clip), labels)
        own.backward()
        total += own.item()
        for (name, value), mine in zip(network.named_parameters(), ours.parameters(), strict=True):
            if value.requires_grad:
                torch.testing.assert_close(mine.grad, value.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "depth"), [("pan-pa-r18", 1), ("pan-full-r18", 1), ("pan-en-r18", 0), ("pan-en-r18", 1), ("pan-en-r18", 3)]
)
def test_every_branch_has_the_official_rates(train_index, name, depth):
    recipe = find_recipe("pan-lite-r50/something-v1")
    module = TrainingModule(make(name, pa_depth=depth), recipe, index=train_index, val_index=None)
    optimizer = module.configure_optimizers()
    rates = {id(value): group["lr_factor"] for group in optimizer.param_groups for value in group["params"]}
    assert sorted(rates) == sorted(id(value) for value in module.model.parameters())
    motion = [network.persistence for network in module.model.networks if isinstance(network, MotionRecognizer)]
    assert motion
    for persistence in motion:
        if depth:
            assert (rates[id(persistence.weight)], rates[id(persistence.bias)]) == (5.0, 10.0)
    for network in module.model.networks:
        assert (rates[id(network.get_parameter("head.pred.weight"))], rates[id(network.get_parameter("head.pred.bias"))]) == (5.0, 10.0)
        assert rates[id(network.get_parameter("backbone.conv1.weight"))] == 1.0


def test_partial_bn_keeps_the_first_batch_norm_of_each_branch(train_index):
    model = make("pan-full-r18")
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.get_buffer("running_mean"))
    module = TrainingModule(model, small("pan-full-r18", partial_bn=True), index=train_index, val_index=None)
    module.train()
    for network in module.model.networks:
        norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
        assert [norm.training for norm in norms] == [True] + [False] * (len(norms) - 1)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("pan-full-r18", {}),
        ("pan-en-r18", {"precision": "bf16", "pa_depth": 2}),
        ("pan-full-r18", {"precision": "bf16"}),
        ("pan-pa-r18", {"pa_encoding": "e2"}),
        ("pan-rgb-r18", {"frames_per_segment": 1}),
    ],
)
def test_every_family_trains(tmp_path, train_index, val_index, name, changes):
    result = fit(small(name, **changes), index=train_index, val_index=val_index, out=tmp_path / "run")
    assert 0 < result.rows[0]["train_loss"] < 20
    loaded = load_checkpoint(result.last)
    assert loaded.name == name
    assert loaded.model.config.get("pa_depth", 1) == changes.get("pa_depth", 1)
    assert loaded.spec.sampling == ("two-clip" if "-en-" in name else "centre")
    with torch.inference_mode():
        assert torch.isfinite(loaded.model(clips(loaded.spec))).all()


def test_checkpoints_of_earlier_versions_load(tmp_path):
    model = make("pan-full-r18")
    later = {"pa_depth", "eps_inside", "fusion_weights", "aggregation"}
    model.config = {name: value for name, value in model.config.items() if name not in later}
    loaded = load_checkpoint(save(tmp_path / "old.safetensors", model, "pan-full-r18")).model
    assert (loaded.config["pa_depth"], loaded.config["fusion_weights"]) == (1, ())
    with torch.inference_mode():
        torch.testing.assert_close(loaded(clips()), model(clips()), rtol=0, atol=0)


def save(path, model, name, *, labels=LABELS):
    return save_checkpoint(path, model, model_name=name, recipe={}, spec=model.spec, labels=labels, metrics={"val_top1": 0.5})


@pytest.fixture
def branches(tmp_path):
    """Three checkpoints as if trained separately; the RGB branch's clips have one frame per segment."""
    specs = {"rgb": replace(SPEC, frames_per_segment=1), "pa": SPEC, "lite": SPEC}
    return {
        branch: save(tmp_path / f"{branch}.safetensors", make(f"pan-{branch}-r18", spec=spec, seed=seed), f"pan-{branch}-r18")
        for seed, (branch, spec) in enumerate(specs.items())
    }


@pytest.mark.parametrize("lite", [False, True])
def test_fused_scores_are_the_mean_of_the_checkpoints(tmp_path, branches, capsys, lite):
    args = ["fuse", str(tmp_path / "fused.safetensors"), "--rgb", str(branches["rgb"]), "--pa", str(branches["pa"])]
    assert main([*args, *(["--lite", str(branches["lite"])] if lite else []), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == ("pan-en-r18" if lite else "pan-full-r18")
    fused = load_checkpoint(tmp_path / "fused.safetensors")
    assert fused.labels == LABELS
    assert fused.spec == replace(SPEC, sampling="two-clip" if lite else "centre")
    assert fused.recipe["fused"]["rgb"]["metrics"] == {"val_top1": 0.5}
    clip = clips()
    with torch.inference_mode():
        scores = [load_checkpoint(branches[branch]).model(clip) for branch in ("pa", "lite")[: 1 + lite]]
        scores.append(load_checkpoint(branches["rgb"]).model(clip[:, :, :1]))
        torch.testing.assert_close(fused.model(clip), torch.stack(scores).mean(0))


@pytest.mark.parametrize("weights", [("1", "3"), ("2", "1", "0.5")])
def test_fusing_with_weights(tmp_path, branches, capsys, weights):
    parts = ("lite", "rgb", "pa")[-len(weights) :]
    args = ["fuse", str(tmp_path / "fused.safetensors"), *(arg for part in parts for arg in (f"--{part}", str(branches[part])))]
    assert main([*args, "--weights", *weights, "--json"]) == 0
    numbers = [float(weight) for weight in weights]
    assert json.loads(capsys.readouterr().out)["weights"] == numbers
    fused, clip = load_checkpoint(tmp_path / "fused.safetensors"), clips()
    with torch.inference_mode():
        scores = [load_checkpoint(branches[part]).model(clip[:, :, :1] if part == "rgb" else clip) for part in parts]
        wanted = sum(number * score for number, score in zip(numbers, scores, strict=True)) / sum(numbers)
        torch.testing.assert_close(fused.model(clip), wanted)
    (tmp_path / "fused.safetensors").unlink()
    assert main([*args, "--weights", "1", "1", "1", "1"]) == 1
    assert "there must be one for each of" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "fused.safetensors").exists()


def test_branches_that_do_not_fit_are_refused(tmp_path, branches):
    rgb, pa, lite = branches["rgb"], branches["pa"], branches["lite"]

    def other(name, *, labels=LABELS, **options):
        return save(tmp_path / "other.safetensors", make(name, **options), name, labels=labels)

    with pytest.raises(FlowlessError, match=r"rgb\.safetensors: a pan-rgb-r18; the branch pa must be a pan-pa"):
        fuse_checkpoints(rgb=rgb, pa=rgb)
    with pytest.raises(FlowlessError, match=r"other\.safetensors: a tsm-r18; the branch pa must be a pan-pa"):
        fuse_checkpoints(rgb=rgb, pa=other("tsm-r18"))
    with pytest.raises(FlowlessError, match=r"other\.safetensors: does not fit .*pa\.safetensors \(its 5 labels are not the same 5"):
        fuse_checkpoints(rgb=other("pan-rgb-r18", labels=LABELS[::-1]), pa=pa)
    with pytest.raises(FlowlessError, match="height 40 instead of 32"):
        fuse_checkpoints(rgb=other("pan-rgb-r18", spec=replace(SPEC, height=40, short_side=40)), pa=pa)
    with pytest.raises(FlowlessError, match="frames_per_segment 2 instead of 3"):
        fuse_checkpoints(rgb=rgb, pa=pa, lite=other("pan-lite-r18", spec=replace(SPEC, frames_per_segment=2)))
    with pytest.raises(FlowlessError, match="aggregation 'average' instead of 'vap'"):
        fuse_checkpoints(rgb=other("pan-rgb-r18", aggregation="average"), pa=pa)
    with pytest.raises(FlowlessError, match="eps_inside True instead of False"):
        fuse_checkpoints(rgb=rgb, pa=pa, lite=other("pan-lite-r18", eps_inside=True))
    for branch in ("rgb", "lite"):
        with pytest.raises(FlowlessError, match="blocks 1 instead of 0"):
            fuse_checkpoints(**{"rgb": rgb, "pa": pa, branch: other(f"pan-{branch}-r18", blocks=1)})
    with pytest.raises(FlowlessError, match="it is a pan-rgb-r34, not a pan-rgb-r18"):
        fuse_checkpoints(rgb=other("pan-rgb-r34"), pa=pa)
    # Dropout may differ.
    fuse_checkpoints(rgb=other("pan-rgb-r18", dropout=0.1), pa=pa, lite=lite)

"""BN-Inception and the disentangling recogniser against NumPy float64, published sizes, and training of the branches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import disentangling_reference as plain
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.loading.loader import Batch
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.loop.fit import fit
from flowless.train.loop.training_module import TrainingModule
from flowless.train.models import DisentanglingRecognizer, build_model
from flowless.train.models.backbones.bn_inception import MODULES, STEM, BNInception, InceptionStages
from flowless.train.models.disentangling import AppearanceNetwork, max_pool_frame_pairs
from flowless.train.models.flops import count, size_of
from flowless.train.recipes import find_recipe

NAME = "disentangling-bninception"
SPEC = ClipSpec(segments=2, frames_per_segment=3, height=32, width=33, short_side=33)


def make(**options: Any) -> DisentanglingRecognizer:
    model = build_model(NAME, **({"classes": 5, "spec": SPEC, "width": 0.25, "displacement_window": 2} | options))
    assert isinstance(model, DisentanglingRecognizer)
    return model


def randomised(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.get_buffer("running_mean"), 0, 0.2)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    return model


def clips(spec=SPEC, *, batch=2, seed=0):
    return torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def test_bn_inceptions_published_size():
    network = BNInception().to("meta")
    parameters = sum(value.numel() for value in network.parameters())
    assert parameters / 1e6 == pytest.approx(10.3, rel=0.01)
    # The published weights also have a bias for each of 10,016 filters, which batch norm cancels, and a classifier of 1,000: 11.3 M.
    filters = sum(conv.out_channels for conv in network.modules() if isinstance(conv, nn.Conv2d))
    assert parameters + filters + 1025 * 1000 == 11_295_240
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(2.03, abs=0.005)


def test_bn_inceptions_published_shapes():
    # Figure 5's column "output size", except for 4c, 4d and 4e: there it says 576, 576 and 1024, but the layers add up to these.
    wanted = {"3a": 256, "3b": 320, "3c": 576, "4a": 576, "4b": 576, "4c": 608, "4d": 608, "4e": 1056, "5a": 1024, "5b": 1024}
    stages = InceptionStages().to("meta").stages
    modules = [module for stage in list(stages)[1:] for module in stage]  # type: ignore[arg-type]
    assert {name: module.outputs for name, module in zip(MODULES, modules, strict=True)} == wanted
    assert {name: tuple(row) for name, row in MODULES.items()} == {
        name: tuple(value or 0 for value in row) for name, row in plain.TABLE.items()
    }
    x = torch.zeros(2, 64, 112, 112, device="meta")
    sizes = [(x := stage(x)).shape[1:] for stage in stages]
    assert sizes == [(192, 28, 28), (576, 14, 14), (1056, 7, 7), (1024, 7, 7)]


@pytest.mark.parametrize("size", [(32, 32), (31, 45)])
def test_bn_inception_equals_the_reference(reference, size):
    torch.manual_seed(1)
    network = randomised(BNInception(width=0.25)).double().eval()
    x = np.random.default_rng(0).standard_normal((2, 3, *size))
    state = arrays(network)
    low = reference.conv2d(x, state["conv1.conv.weight"], stride=2, padding=3)
    wanted = plain.body(np.maximum(reference.batch_norm(low, state, "conv1.norm"), 0), state, "body.stages", reference)
    assert wanted.std() > 0.05
    with torch.inference_mode():
        np.testing.assert_allclose(network(torch.from_numpy(x)), wanted, atol=1e-10)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8])
def test_max_pooling_of_frame_pairs(frames):
    x = np.random.default_rng(frames).standard_normal((2 * frames, 3, 4, 5))
    wanted, left = plain.pooled_in_time(x, frames)
    ours, ours_left = max_pool_frame_pairs(torch.from_numpy(x), frames=frames)
    assert ours_left == left == -(-frames // 2)
    np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_gradual_pooling_in_the_appearance_branch(reference, frames):
    torch.manual_seed(2)
    network = randomised(AppearanceNetwork(width=0.125)).double().eval()
    x = np.abs(np.random.default_rng(3).standard_normal((2 * frames, 64, 16, 17)))
    with torch.inference_mode():
        ours = network.encode(torch.from_numpy(x), frames=frames)
    assert ours.shape == (2, network.num_features)
    np.testing.assert_allclose(ours, plain.body(x, arrays(network), "stages", reference, frames=frames), atol=1e-10)


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_late_pooling_in_the_appearance_branch(reference, frames):
    torch.manual_seed(2)
    network = randomised(AppearanceNetwork(width=0.125, pooling="late")).double().eval()
    x = np.abs(np.random.default_rng(3).standard_normal((2 * frames, 64, 16, 17)))
    with torch.inference_mode():
        ours = network.encode(torch.from_numpy(x), frames=frames)
    alone = plain.body(x, arrays(network), "stages", reference)
    np.testing.assert_allclose(ours, alone.reshape(2, frames, -1).max(1), atol=1e-10)


def test_eight_frames_are_pooled_to_one():
    # After pool2 8 frames become 4, after 3c 2, after 4e 1; with more than 8 the maximum of the rest is taken.
    network = AppearanceNetwork(width=0.125).eval()
    seen = []
    for stage in network.stages:
        stage.register_forward_hook(lambda _, inputs, output: seen.append((len(inputs[0]), tuple(output.shape[2:]))))
    with torch.inference_mode():
        assert network.encode(torch.rand(3 * 8, 64, 112, 112), frames=8).shape == (3, network.num_features)
        assert seen == [(24, (28, 28)), (12, (14, 14)), (6, (7, 7)), (3, (7, 7))]
        assert network.encode(torch.rand(2 * 16, 64, 16, 16), frames=16).shape == (2, network.num_features)


@pytest.mark.parametrize("size", [112, 224])
def test_scores_equal_the_reference(reference, size):
    torch.manual_seed(4)
    model = randomised(make(displacement_size=size)).double().eval()
    for branch in (model.appearance, model.motion, model.changes):
        nn.init.normal_(branch.get_parameter("head.pred.bias"))
    clip = clips()
    options = {"window": 2, "temperature": 0.02, "stride": 2 if size == 112 else 1}
    wanted = plain.scores(clip.numpy(), arrays(model), SPEC, reference, **options)
    assert (wanted.std((1, 2)) > 0.1).all()
    with torch.inference_mode():
        exact = (clip.double().movedim(-1, -3) - model.mean.view(3, 1, 1)) / model.std.view(3, 1, 1)
        np.testing.assert_allclose(model.forward_frames(exact), wanted.mean(0), atol=1e-5)
        ours = model.float().branch_scores(clip)
        np.testing.assert_allclose(ours, wanted, atol=2e-3)
        torch.testing.assert_close(model(clip), ours.mean(0))
        vectors = model.features(model.normalise(model.as_frames(clip)))
    assert vectors.shape == (2, 2, 3 * 256)


def test_displacement_maps_of_a_shifted_image():
    torch.manual_seed(5)
    spec = replace(SPEC, frames_per_segment=4, height=64, width=64, short_side=64)
    image = np.random.default_rng(6).integers(0, 256, (20, 20, 3)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    for size, cells in ((112, 1), (224, 2)):
        model = make(spec=spec, displacement_size=size, displacement_window=4, displacement_temperature=0.01).eval()
        frames = [image[20 - 2 * t : 84 - 2 * t, 10 + 2 * t : 74 + 2 * t] for t in range(4)]  # 2 pixels down and 2 left
        clip = torch.from_numpy(np.stack([np.stack(frames)] * 2))[None]
        with torch.inference_mode():
            maps = model.displacement(clip)
        side = 64 * size // 224
        assert maps.shape == (1, 2, 3, 2, side, side)
        inner = maps[..., 8:-8, 8:-8].mean((0, 1, 2, 4, 5))
        torch.testing.assert_close(inner, torch.tensor([cells, -cells]).float(), atol=0.15 * cells, rtol=0)


def test_size():
    spec = ClipSpec(segments=1, frames_per_segment=8)
    sizes = {size: size_of(NAME, classes=101, spec=spec, displacement_size=size) for size in (112, 224)}
    assert {size: (item.parameters / 1e6, item.macs / 1e9) for size, item in sizes.items()} == {
        112: (pytest.approx(31.28, abs=0.01), pytest.approx(54.2, abs=0.05)),
        224: (pytest.approx(31.28, abs=0.01), pytest.approx(61.6, abs=0.05)),
    }
    # Three networks of 10.25 M; two have a first convolution of 2 and 64 channels, one uses the shared one.
    network = sum(value.numel() for value in BNInception().parameters())
    assert sizes[112].parameters == 3 * network + (2 + 64 - 6) * 64 * 49 + 3 * (1024 + 1) * 101


def test_size_of_late_pooling():
    # All 8 frames go through all four stages; with gradual pooling 8, 4, 2 and 1 do.
    from torch.utils.flop_counter import FlopCounterMode

    more = []
    for width in (1.0, 0.25):
        x, difference = torch.zeros(1, STEM, 112, 112, device="meta"), 0.0
        with torch.device("meta"):
            stages = InceptionStages(width=width).eval().stages
        for stage, frames in zip(stages, (8, 4, 2, 1), strict=True):
            with FlopCounterMode(display=False) as counter:
                x = stage(x)
            difference += (8 - frames) * counter.get_total_flops() / 2
        more.append(difference)
    assert more[0] / 1e9 == pytest.approx(8.51, abs=0.005)
    spec = ClipSpec(segments=1, frames_per_segment=8)
    gradual, late = (count(make(spec=spec, appearance_pooling=pooling)) for pooling in ("gradual", "late"))
    assert (late.parameters, late.macs - gradual.macs) == (gradual.parameters, more[1])


def test_gradients_reach_every_branch_and_the_shared_layer():
    torch.manual_seed(7)
    model = make(dropout=0.0).train()
    scores = model.branch_scores(clips())
    shared = model.low.get_parameter("conv.weight")
    seen = []
    for own, part in zip(scores, (model.appearance, model.motion, model.changes), strict=True):
        model.zero_grad()
        F.cross_entropy(own, torch.tensor([0, 3])).backward(retain_graph=True)
        assert shared.grad is not None
        assert shared.grad.abs().max() > 0
        seen.append(shared.grad.clone())
        for name, value in part.named_parameters():
            assert value.grad is not None, name
            assert value.grad.abs().max() > 0, name
        for other in (model.appearance, model.motion, model.changes):
            assert other is part or all(value.grad is None or not value.grad.any() for value in other.parameters())
    assert not torch.allclose(seen[0], seen[1])


def small(**changes: Any):
    fields = {"segments": 2, "frames_per_segment": 3, "size": 32, "short_side": 32, "epochs": 1, "batch_size": 8, "threads": 1}
    return find_recipe(f"{NAME}/moving-shapes", **(fields | {"accelerator": "cpu"} | changes))


def test_the_losses_of_the_branches_are_added(train_index):
    module = TrainingModule(make(dropout=0.0), small(dropout=0.0), index=train_index, val_index=None)
    clip, labels = clips(batch=3), torch.tensor([0, 1, 2])
    module.train()
    loss = module.training_step(Batch(clips=clip[:, None], labels=labels, ids=["a", "b", "c"]), 0)
    wanted = sum(F.cross_entropy(scores, labels) for scores in module.model.branch_scores(clip))
    torch.testing.assert_close(loss, wanted)


def test_every_parameter_is_in_one_group(train_index):
    module = TrainingModule(make(), small(layer_rates=True), index=train_index, val_index=None)
    optimizer = module.configure_optimizers()
    grouped = [id(value) for group in optimizer.param_groups for value in group["params"]]
    assert sorted(grouped) == sorted(id(value) for value in module.model.parameters())


def test_partial_bn_keeps_the_first_batch_norm_of_each_branch(train_index):
    model = make()
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(cast(torch.Tensor, norm.running_mean))
    module = TrainingModule(model, small(partial_bn=True), index=train_index, val_index=None).train()
    free = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d) and part.training]
    assert free == ["low.norm", "motion.network.conv1.norm", "changes.network.conv1.norm"]
    assert module.model is model


def test_checkpoints_store_the_options(tmp_path):
    model = randomised(make(displacement_size=224, displacement_temperature=0.05, appearance_pooling="late")).eval()
    path = save_checkpoint(tmp_path / "m.safetensors", model, model_name=NAME, recipe={}, spec=SPEC, labels=list("abcde"), metrics={})
    loaded = load_checkpoint(path).model
    assert isinstance(loaded, DisentanglingRecognizer)
    assert (loaded.measure.window, loaded.measure.temperature) == (2, 0.05)
    with torch.inference_mode():
        assert torch.equal(loaded(clips()), model(clips()))
        model.appearance.network.pooled_stages = 3
        assert not torch.equal(loaded(clips()), model(clips()))


def test_invalid_options_are_refused():
    for options, message in (
        ({"spec": replace(SPEC, frames_per_segment=1)}, "frames_per_segment is 1"),
        ({"displacement_size": 56}, "displacement_size is 56"),
        ({"displacement_window": 0}, "window is 0"),
        ({"appearance_pooling": "never"}, "'never'; it must be one of gradual, late"),
    ):
        with pytest.raises(FlowlessError, match=message):
            make(**options)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_one_epoch(tmp_path, train_index, val_index, precision):
    result = fit(small(precision=precision, blocks=1), index=train_index, val_index=val_index, out=tmp_path / "run")
    assert np.isfinite(result.rows[-1]["val_loss"])
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").name == NAME


def moving_textures(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clips of random textures that move 1 to 3 pixels per frame down, up, right or left, and the direction as label."""
    labels, clips = torch.randint(0, 4, (number,)), []
    for label in labels.tolist():
        image = F.interpolate(torch.rand(1, 3, 24, 24), size=96, mode="bicubic")[0].clamp(0, 1) * 255
        step = int(torch.randint(1, 4, ()).item())
        down, right = ((step, 0), (-step, 0), (0, step), (0, -step))[label]
        clips.append(torch.stack([image[:, 24 - down * t : 72 - down * t, 24 - right * t : 72 - right * t] for t in range(3)]))
    return torch.stack(clips).byte().movedim(2, -1)[:, None].contiguous(), labels


@pytest.mark.slow
def test_motion_learns_what_appearance_cannot_see():
    torch.manual_seed(0)
    spec = ClipSpec(segments=1, frames_per_segment=3, height=48, width=48, short_side=48)
    model = make(classes=4, spec=spec, dropout=0.0, displacement_window=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(20):
        clip, labels = moving_textures(16)
        optimizer.zero_grad()
        torch.stack([F.cross_entropy(scores, labels) for scores in model.branch_scores(clip)]).sum().backward()
        optimizer.step()
    clip, labels = moving_textures(64)
    with torch.no_grad():  # in training mode: 20 steps are too few for batch norm's running means
        appearance, motion, _ = ((scores.argmax(1) == labels).float().mean().item() for scores in model.branch_scores(clip))
    assert motion > 0.9
    assert appearance < 0.5

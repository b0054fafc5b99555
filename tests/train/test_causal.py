"""Causal networks, whose temporal shift takes channels from the past alone: tsm, pan-lite and pan-rgb with the option `causal`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from flowless.cli import main
from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.checkpoints.fuse_branches import fuse_checkpoints
from flowless.train.models import MODELS, Network, build_model
from flowless.train.models.flops import size_of
from flowless.train.models.layers.temporal_shift import ShiftedConv, carry_between_steps, causal_shift
from flowless.train.models.options import OPTIONS, options_for
from flowless.train.recipes import Recipe, find_recipe

FAMILIES = ("tsm", "pan-lite", "pan-rgb")
SMALL = ClipSpec(segments=4, frames_per_segment=3, height=32, width=40, short_side=40)


def make(name: str, *, spec: ClipSpec = SMALL, **options: Any) -> Network:
    torch.manual_seed(0)
    model = build_model(name, classes=5, spec=spec, width=0.25, blocks=1, **options).eval()
    torch.nn.init.normal_(model.heads[0].get_parameter("pred.weight"))
    assert isinstance(model, Network)
    return model


def clips(batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (batch, *SMALL.shape), dtype=np.uint8))


@pytest.mark.parametrize(("channels", "segments"), [(16, 4), (8, 8), (20, 3), (9, 1), (7, 2)])
def test_shift(reference, channels, segments):
    x = np.random.default_rng(0).standard_normal((2 * segments, channels, 3, 2))
    ours = causal_shift(torch.from_numpy(x), segments=segments)
    np.testing.assert_array_equal(ours, reference.causal_shift(x, segments))


def test_shift_between_steps(reference):
    """With the channels of the step before, segments one by one are shifted as a clip is; afterwards clips are shifted as before."""
    x = np.random.default_rng(0).standard_normal((2, 5, 17, 3, 2))
    shift = ShiftedConv(torch.nn.Identity(), segments=5, causal=True)
    flat, wanted = x.reshape(-1, *x.shape[2:]), reference.causal_shift(x.reshape(-1, *x.shape[2:]), 5)
    carried: Any = torch.zeros(2, 2, 3, 2, dtype=torch.double)
    for place in range(5):
        with carry_between_steps([shift], [carried]):
            np.testing.assert_array_equal(shift(torch.from_numpy(x[:, place])), wanted.reshape(x.shape)[:, place])
            carried = shift.carried
    np.testing.assert_array_equal(shift(torch.from_numpy(flat)), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_depend_on_earlier_segments_alone(family):
    for causal in (True, False):
        model, clip = make(f"{family}-r18", causal=causal), clips(1)
        changed = clip.clone()
        changed[:, 2] = 255 - changed[:, 2]
        with torch.inference_mode():
            differences = (model.features_of_pixels(changed) - model.features_of_pixels(clip)).abs().amax((0, 2)) > 1e-6
        # Four shifted convolutions reach four segments back; one that shifts both ways reaches as far forward.
        assert differences.tolist() == ([False, False, True, True] if causal else [True, True, True, True])


@pytest.mark.parametrize("family", FAMILIES)
def test_rgb_is_the_newest_frame_of_a_segment(family):
    model, clip = make(f"{family}-r18", causal=True), clips()
    images = model._input_of_pixels(clip)
    newest = model.normalise(clip[:, :, -1].permute(0, 1, 4, 2, 3).float())
    assert torch.equal(images[:, :, :3], newest)
    assert images.shape[2] == (5 if family == "pan-lite" else 3)
    frames = model.normalise(model.as_frames(clip))
    with torch.inference_mode():
        torch.testing.assert_close(model.forward_frames(frames), model(clip), rtol=1e-4, atol=1e-4)


def test_its_gradients_train_every_weight():
    model = make("pan-lite-r18", causal=True).train()
    model(clips()).square().mean().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == ["persistence.bias"]  # cancels


@pytest.mark.parametrize("name", [name for name in MODELS if name.rpartition("-")[0] in FAMILIES])
def test_it_has_the_size_of_the_offline_model(name):
    spec = ClipSpec(frames_per_segment=4 if "lite" in name else 1)
    assert size_of(name, classes=174, spec=spec, causal=True) == size_of(name, classes=174, spec=spec)


def test_it_is_stored_and_older_checkpoints_are_offline(tmp_path):
    model = make("pan-lite-r18", causal=True)
    about = {"model_name": "pan-lite-r18", "recipe": {}, "spec": SMALL, "labels": tuple("abcde"), "metrics": {}}
    loaded = load_checkpoint(save_checkpoint(tmp_path / "causal.safetensors", model, **about)).model
    assert loaded.config["causal"] is True
    with torch.inference_mode():
        torch.testing.assert_close(loaded(clips()), model(clips()), rtol=0, atol=0)
        assert (make("pan-lite-r18")(clips()) - model(clips())).abs().max() > 1e-3  # the same weights, other scores
    offline = make("pan-lite-r18")
    del offline.config["causal"]
    older = load_checkpoint(save_checkpoint(tmp_path / "older.safetensors", offline, **about)).model
    assert isinstance(older, Network)
    assert not older.causal
    assert older.config["causal"] is False


def test_recipes_have_it():
    recipe = find_recipe("tsm-r18/tiny", causal=True)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert find_recipe("tsm-r18/tiny").differences(recipe) == ["causal False → True"]
    document = find_recipe("tsm-r18/tiny").to_dict()
    del document["causal"]
    assert Recipe.from_dict(document) == find_recipe("tsm-r18/tiny")
    with pytest.raises(FlowlessError, match="tsm-r18: causal is 1; it must be true or false"):
        find_recipe("tsm-r18/tiny", causal=1)


def test_other_families_refuse_it(capsys, tmp_path):
    others = [name for name in MODELS if name.rpartition("-")[0] not in FAMILIES]
    assert {name.rpartition("-")[0] for name in others} == set(OPTIONS) - set(FAMILIES)
    for name in others:
        with pytest.raises(FlowlessError, match=rf"{name}: has no option causal; .*Families with causal: pan-lite, pan-rgb, tsm\."):
            options_for(name, {"causal": True})
    assert main(["train", "stm-r18/tiny", "--data", str(tmp_path / "none.jsonl"), "--causal"]) == 1
    assert "stm-r18: has no option causal;" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "tsn-r18/tiny", "--data", str(tmp_path / "none.jsonl"), "--pa-depth=2"]) == 1
    assert "Families with pa_depth: pan-lite, pan-full, pan-en, pan-pa." in " ".join(capsys.readouterr().err.split())


def test_it_cannot_be_fused(tmp_path):
    paths = {}
    for branch in ("rgb", "pa", "lite"):
        name = f"pan-{branch}-r18"
        options: dict[str, Any] = {"causal": True} if branch == "rgb" else {}
        paths[branch] = save_checkpoint(
            tmp_path / f"{branch}.safetensors",
            make(name, **options),
            model_name=name,
            recipe={},
            spec=SMALL,
            labels=tuple("abcde"),
            metrics={},
        )
    with pytest.raises(FlowlessError, match=r"rgb\.safetensors: does not fit .*it was trained with --causal"):
        fuse_checkpoints(rgb=paths["rgb"], pa=paths["pa"])
    again = make("pan-rgb-r18")
    save_checkpoint(paths["rgb"], again, model_name="pan-rgb-r18", recipe={}, spec=SMALL, labels=tuple("abcde"), metrics={})
    assert fuse_checkpoints(**paths).name == "pan-en-r18"


def test_model_cards_mention_it(capsys):
    for family in FAMILIES:
        main(["models", family])
        assert "causal" in capsys.readouterr().err


def test_it_trains_by_the_command(tmp_path, shapes, capsys):
    out = tmp_path / "run"
    small = "--segments 4 --size 32 --short-side 32 --epochs 1 --batch-size 8 --threads 1 --blocks 1 --accelerator cpu --json"
    data = ["--data", str(shapes / "train.index.jsonl"), "--out", str(out)]
    assert main(["train", "tsm-r18/moving-shapes", "--causal", *data, *small.split()]) == 0
    best = load_checkpoint(json.loads(capsys.readouterr().out)["best"])
    assert isinstance(best.model, Network)
    assert best.model.causal
    assert best.recipe["causal"] is True
    assert all(module.causal for module in best.model.modules() if isinstance(module, ShiftedConv))
    # Resumed without --causal it would be another training.
    assert main(["train", "tsm-r18/moving-shapes", "--resume", *data, *small.split()]) == 1
    assert "causal" in capsys.readouterr().err


def order_clips(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy clips that become brighter, label 0, and the same clips backwards, label 1."""
    levels = np.array([60, 100, 140, 180]).reshape(1, 4, 1, 1, 1, 1)
    rising = np.random.default_rng(seed).integers(-40, 40, (8, 4, 1, 32, 32, 3)) + levels
    return torch.from_numpy(np.concatenate([rising, rising[:, ::-1]]).astype(np.uint8)), torch.arange(2).repeat_interleave(8)


@pytest.mark.parametrize(("name", "options", "learns"), [("tsm-r18", {"causal": True}, True), ("tsn-r18", {}, False)])
def test_it_learns_the_order_of_segments(name, options, learns):
    """Without the shift it is impossible: both labels have the same frames."""
    spec = ClipSpec(segments=4, frames_per_segment=1, height=32, width=32, short_side=32)
    model = make(name, spec=spec, dropout=0.0, **options).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for seed in range(15):
        clip, labels = order_clips(seed)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(clip), labels).backward()
        optimiser.step()
    clip, labels = order_clips(100)
    with torch.no_grad():
        accuracy = (model(clip).argmax(1) == labels).double().mean().item()
    assert accuracy == (1.0 if learns else 0.5)

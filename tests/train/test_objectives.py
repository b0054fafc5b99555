"""Twins Training: its loss against NumPy float64, and training with it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.loading.augment import Augmentation, training_view, view_is_deterministic
from flowless.pipeline.loading.loader import Batch
from flowless.pipeline.synthetic.scene import PAIRS, scene_frames
from flowless.train.commands.train import train
from flowless.train.loop.fit import fit
from flowless.train.loop.index_checks import check_twins_differ
from flowless.train.loop.loaders import LoaderPlacement, training_loader
from flowless.train.loop.objectives import correlation_loss, cross_correlation, objective_of
from flowless.train.loop.training_module import TrainingModule
from flowless.train.models import build_model
from flowless.train.recipes import Recipe, find_recipe

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=32)
FIELDS = {"segments": 4, "size": 32, "short_side": 32, "epochs": 1, "batch_size": 8, "threads": 1, "accelerator": "cpu"}


def scores(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("batch", "classes"), [(2, 3), (8, 5), (5, 12)])
def test_the_twins_loss_equals_the_reference(reference, batch, classes):
    both, labels = scores(2 * batch, classes), torch.arange(2 * batch) % classes
    a, b = both.numpy()[::2], both.numpy()[1::2]
    np.testing.assert_allclose(cross_correlation(both[::2], both[1::2]), reference.twins_correlation(a, b), atol=1e-12)
    for recipe in (Recipe(objective="twins"), Recipe(objective="twins", twins_lambda=0.7, twins_beta=0.2)):
        weights = {"weight": recipe.twins_lambda, "beta": recipe.twins_beta}
        wanted = reference.twins_loss(a, b, labels.numpy()[::2], labels.numpy()[1::2], **weights)
        assert objective_of(recipe)(both, labels).item() == pytest.approx(wanted, abs=1e-5)
    # Without the correlation loss, two augmentations are twice as many clips.
    plain = objective_of(Recipe())(both, labels)
    torch.testing.assert_close(objective_of(Recipe(objective="twins", twins_lambda=0.0))(both, labels), plain)


def test_default_weights_of_the_paper():
    recipe = Recipe(objective="twins")
    assert (recipe.twins_lambda, recipe.twins_beta, recipe.draws) == (0.01, 0.0039, 2)
    assert Recipe().draws == 1


def test_the_correlation_loss_of_simple_scores():
    apart = torch.eye(4)[:, :3] * 7
    assert correlation_loss(apart, apart * 3, beta=1.0).item() == pytest.approx(0, abs=1e-6)
    # All classes correlate fully: the diagonal costs nothing, and each of the six pairs costs beta.
    alike = torch.ones(4, 3)
    assert correlation_loss(alike, alike, beta=0.5).item() == pytest.approx(3.0)
    assert correlation_loss(alike, -alike, beta=0.0).item() == pytest.approx(3 * 4)


def test_a_class_without_scores_does_not_break_the_gradient():
    one, other = torch.zeros(4, 3, requires_grad=True), torch.randn(4, 3)
    correlation_loss(one, other, beta=0.0039).backward()
    assert one.grad is not None
    assert torch.isfinite(one.grad).all()


def test_mixed_precision_does_not_round_the_correlation():
    one, other = scores(8, 5).float(), scores(8, 5, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = correlation_loss(one, other, beta=0.1)
    torch.testing.assert_close(rounded, correlation_loss(one, other, beta=0.1), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["tsn-r18", "stm-r18", "pan-full-r18"])
def test_a_step_uses_both_augmentations(train_index, reference, name):
    torch.manual_seed(1)
    model = build_model(name, classes=12, spec=SPEC, width=0.25, dropout=0.0)
    recipe = find_recipe(f"{name}/moving-shapes", objective="twins", twins_lambda=0.5, dropout=0.0, **FIELDS)
    module = TrainingModule(model, recipe, index=train_index, val_index=None)
    module.train()
    clips = torch.randint(0, 256, (4, 2, *SPEC.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([[0, 1], [2, 2], [3, 4], [5, 5]])
    loss = module.training_step(Batch(clips=clips, labels=labels, ids=list("abcd")), 0)
    loss.backward()
    with torch.no_grad():
        wanted = 0.0
        # Batch norm sees both augmentations in one batch, and every branch has the whole objective.
        for branch in module.model.branch_scores(clips.flatten(0, 1)).double().unflatten(1, (4, 2)):
            a, b = (branch[:, view].numpy() for view in range(2))
            wanted += reference.twins_loss(a, b, labels[:, 0].numpy(), labels[:, 1].numpy(), weight=0.5, beta=0.0039)
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    assert module._sums["train"].count == 8, "both augmentations count"
    for network in module.model.networks:
        gradient = network.get_parameter("head.pred.weight").grad
        assert gradient is not None
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", ["tsn-r18", "stm-r18"])
def test_twins_train(tmp_path, train_index, val_index, name):
    flips = {"flip": True, "flip_labels": {"left": "right", "clockwise": "counter-clockwise"}, "colour_jitter": 0.2, "grey": 0.2}
    known = {key: value for key, value in flips["flip_labels"].items() if {key, value} <= set(train_index.labels)}
    recipe = find_recipe(f"{name}/moving-shapes", objective="twins", **(FIELDS | flips | {"flip_labels": known}))
    result = fit(recipe, index=train_index, val_index=val_index, out=tmp_path / "run")
    assert 0 < result.rows[0]["train_loss"] < 20
    assert 0 <= result.rows[0]["train_top1"] <= 1
    assert known


def test_the_objective_changes_the_augmentation():
    for name in ("stm-r50/something-v1", "stm-r50/kinetics400", "tsn-r18/custom"):
        plain, twins = find_recipe(name), find_recipe(name, objective="twins")
        assert (plain.colour_jitter, plain.grey) == (0, 0)
        assert (twins.colour_jitter, twins.grey, twins.flip, twins.scales) == (0.4, 0.2, plain.flip, (1.0, 0.875, 0.75, 0.66))
    assert find_recipe("stm-r18/moving-shapes", objective="twins").scales == (1.0, 0.875)
    given = find_recipe("stm-r18/moving-shapes", objective="twins", grey=0.0, scales=(1.0,))
    assert (given.colour_jitter, given.grey, given.scales) == (0.4, 0.0, (1.0,))


@pytest.mark.parametrize("args", [["--objective", "twins", "--grey", "0.5"], ["--grey=0.5", "--objective=twins"]])
def test_the_command_line_changes_the_augmentation_too(monkeypatch, tmp_path, shapes, args):
    found = []
    monkeypatch.setattr("flowless.train.loop.fit.fit", lambda recipe, **_: found.append(recipe) or SimpleNamespace(global_zero=False))
    train(["stm-r18/moving-shapes", "--data", str(shapes / "train.index.jsonl"), "--out", str(tmp_path / "run"), *args])
    assert found == [find_recipe("stm-r18/moving-shapes", objective="twins", grey=0.5)]


def test_the_two_augmentations_of_moving_shapes_differ(train_index):
    """The videos are 32 x 32, as large as the network's input."""
    recipe = find_recipe("stm-r18/moving-shapes", objective="twins", **FIELDS)
    for batch in training_loader(train_index, recipe, placement=LoaderPlacement()):
        one, other = batch.clips.float().unbind(1)
        assert ((one - other).abs().flatten(1).mean(1) > 1).all()
        assert (batch.labels[:, 0] == batch.labels[:, 1]).all()


@pytest.mark.parametrize("action", [first for first, _ in PAIRS])
def test_every_twins_crop_shows_the_action(action):
    """Most of the change between frames lies inside the smallest crop, at every position."""
    recipe = find_recipe("stm-r18/moving-shapes", objective="twins")
    side = int(48 * min(recipe.scales))
    for scene in range(40):
        film = scene_frames(action, size=48, frames=16, shake=False, seed=(0, 0, scene)).astype(int)
        change = np.abs(np.diff(film, axis=0)).sum((0, 3))
        places = [(top, left) for top in (0, 48 - side) for left in (0, 48 - side)]
        assert min(change[top : top + side, left : left + side].sum() for top, left in places) > 0.6 * change.sum()


@pytest.mark.parametrize(
    "changes",
    [{"scales": (1.0, 0.875)}, {"colour_jitter": 0.1}, {"grey": 0.1}, {"flip": True}, {"size": 20}],
    ids=lambda changes: next(iter(changes)),
)
def test_equal_augmentations_are_refused(tmp_path, train_index, changes):
    still = {"scales": (1.0,), "colour_jitter": 0.0, "grey": 0.0, "flip": False}
    same = find_recipe("tsn-r18/moving-shapes", objective="twins", **(FIELDS | still))
    with pytest.raises(FlowlessError, match=r"same pixels: scales is 1\.0.*flip is off, colour_jitter and grey are 0.*--grey"):
        fit(same, index=train_index, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_twins_differ(train_index, replace(same, objective="scores"))
    changed = replace(same, **changes)
    if "size" in changes:  # the network's size changes no crop: the whole frame is resized
        with pytest.raises(FlowlessError, match="same pixels"):
            check_twins_differ(train_index, changed)
        return
    check_twins_differ(train_index, changed)
    wide = replace(train_index.videos[0], info=replace(train_index.videos[0].info, width=64))
    check_twins_differ(replace(train_index, videos=(*train_index.videos, wide)), same)


@pytest.mark.parametrize(
    ("width", "height", "scales", "alike"),
    [
        (32, 32, (1.0,), True),
        (32, 32, (1.0, 1.0), True),
        (33, 32, (1.0,), True),
        (36, 32, (1.0,), False),
        (32, 40, (1.0,), False),
        # A side within two pixels of the network's is replaced by it.
        (32, 32, (1.0, 0.95), True),
        (32, 32, (0.95,), True),
        (32, 32, (0.875,), False),
        (200, 200, (1.0, 0.5), False),
        (200, 200, (1.0,), True),
        (320, 240, (1.0,), False),
    ],
)
def test_crops_that_always_cover_the_frame(width, height, scales, alike):
    augmentation = Augmentation(scales=scales)
    chances = [np.random.default_rng(seed) for seed in range(60)]
    views = {training_view(chance, width=width, height=height, spec=SPEC, augmentation=augmentation) for chance in chances}
    assert (len(views) == 1) == alike
    assert view_is_deterministic(width, height, spec=SPEC, augmentation=augmentation) == alike


def test_invalid_fields_are_refused():
    with pytest.raises(FlowlessError, match=r"objective is 'triplets'; it must be one of scores, twins.*twins_beta is -1.*grey is 2"):
        Recipe(objective="triplets", twins_beta=-1, grey=2)  # type: ignore[arg-type]

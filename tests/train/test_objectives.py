"""Twins Training: its loss against NumPy float64, and that any model can be trained by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.loading.loader import Batch
from flowless.train.loop.fit import fit
from flowless.train.loop.module import TrainingModule
from flowless.train.loop.objectives import correlation_loss, cross_correlation, objective_of
from flowless.train.models import build_model
from flowless.train.recipes import Recipe, find_recipe

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=32)
FIELDS = {"segments": 4, "size": 32, "short_side": 32, "epochs": 1, "batch_size": 8, "threads": 1, "accelerator": "cpu"}


def scores(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("batch", "classes"), [(2, 3), (8, 5), (5, 12)])
def test_the_loss_is_the_papers(reference, batch, classes):
    both, labels = scores(2 * batch, classes), torch.arange(2 * batch) % classes
    a, b = both.numpy()[::2], both.numpy()[1::2]
    np.testing.assert_allclose(cross_correlation(both[::2], both[1::2]), reference.twins_correlation(a, b), atol=1e-12)
    for recipe in (Recipe(objective="twins"), Recipe(objective="twins", twins_lambda=0.7, twins_beta=0.2)):
        weights = {"weight": recipe.twins_lambda, "beta": recipe.twins_beta}
        wanted = reference.twins_loss(a, b, labels.numpy()[::2], labels.numpy()[1::2], **weights)
        assert objective_of(recipe)(both, labels).item() == pytest.approx(wanted, abs=1e-5)
    # With no weight on the correlation, two views are twice the clips.
    plain = objective_of(Recipe())(both, labels)
    torch.testing.assert_close(objective_of(Recipe(objective="twins", twins_lambda=0.0))(both, labels), plain)


def test_the_papers_weights():
    recipe = Recipe(objective="twins")
    assert (recipe.twins_lambda, recipe.twins_beta, recipe.draws) == (0.01, 0.0039, 2)
    assert Recipe().draws == 1


def test_agreement_and_independence_cost_nothing():
    apart = torch.eye(4)[:, :3] * 7
    assert correlation_loss(apart, apart * 3, beta=1.0).item() == pytest.approx(0, abs=1e-6)
    # Every class the same: nothing to say against the diagonal, all of the six pairs against the rest.
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
def test_a_step_learns_from_both_views(train_index, reference, name):
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
        # Batch norm sees both views at once, and every branch has the whole objective for itself.
        for branch in module.model.branch_scores(clips.flatten(0, 1)).double().unflatten(1, (4, 2)):
            a, b = (branch[:, view].numpy() for view in range(2))
            wanted += reference.twins_loss(a, b, labels[:, 0].numpy(), labels[:, 1].numpy(), weight=0.5, beta=0.0039)
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    assert module._sums["train"].count == 8, "both views count"
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


def test_wrong_words_are_told():
    with pytest.raises(FlowlessError, match=r"twins_beta is -1.*grey is 2.*objective is 'triplets'; it must be one of scores, twins"):
        Recipe(objective="triplets", twins_beta=-1, grey=2)  # type: ignore[arg-type]

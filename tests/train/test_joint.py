"""Joint training: alpha by each rule, and the mixed gradient of PWTP."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.loading.loader import Batch
from flowless.train.checkpoints import load_checkpoint
from flowless.train.loop.fit import fit
from flowless.train.loop.joint_training import pareto_alpha, scheduled_alpha
from flowless.train.loop.training_module import TrainingModule
from flowless.train.models import build_model
from flowless.train.models.options import AppearanceOptions
from flowless.train.recipes import Recipe, find_recipe

SPEC = ClipSpec(segments=2, frames_per_segment=3, height=32, width=32, short_side=32)
RULES = ("decoupled", "constant", "schedule", "mgda")


def small(**changes):
    fields = {"segments": 2, "frames_per_segment": 3, "size": 32, "short_side": 32, "epochs": 2, "batch_size": 8, "threads": 1}
    return find_recipe("da-tsm-r18/moving-shapes", **(fields | {"accelerator": "cpu", "dropout": 0.0} | changes))


def make() -> Any:
    torch.manual_seed(1)
    return build_model("da-tsm-r18", classes=4, spec=SPEC, width=0.25, dropout=0.0)


def batches(count, *, size=4):
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (count, size, 1, *SPEC.shape), dtype=torch.uint8, generator=generator)
    return [Batch(clips=clip, labels=torch.arange(size) % 4, ids=list("abcd")) for clip in clips]


@pytest.mark.parametrize("seed", range(8))
def test_mgda_minimises_the_norm(seed):
    """Eq. 12 against a grid search over alpha, for gradients at many angles, so that the ends of [0, 1] occur too."""
    generator = torch.Generator().manual_seed(seed)
    first, noise = torch.randn(2, 50, generator=generator, dtype=torch.double)
    second = first * (seed - 4) / 2 + noise * (0.05 if seed % 2 else 1.0)
    tried = torch.linspace(0, 1, 100_001, dtype=torch.double)
    lengths = (tried[:, None] * first + (1 - tried[:, None]) * second).square().sum(1)
    assert pareto_alpha(first, second).item() == pytest.approx(tried[lengths.argmin()].item(), abs=1e-5)


def test_mgda_at_its_ends():
    gradient = torch.tensor([1.0, 2.0])
    assert pareto_alpha(gradient, 3 * gradient) == 1
    assert pareto_alpha(3 * gradient, gradient) == 0
    assert pareto_alpha(gradient, gradient) == 0.5
    assert pareto_alpha(gradient, -gradient) == 0.5
    assert pareto_alpha(torch.zeros(2), gradient) == 1


@pytest.mark.parametrize(("gamma", "least"), [(0.1, 0.1), (0.2, 0.1), (0.2, 0.3), (0.5, 0.3), (0.5, 0.0), (0.5, 1.0)])
def test_schedule_of_alpha(gamma, least):
    steps = 1000
    alphas = [scheduled_alpha(step, steps, gamma=gamma, least=least) for step in range(1, steps + 1)]
    turn = round(gamma * steps)
    assert alphas[0] == pytest.approx(1)
    assert alphas[turn - 1] == pytest.approx(least, abs=1e-9)
    assert alphas[turn - 2] == pytest.approx(least, abs=0.01)
    assert alphas[-1] == pytest.approx(0, abs=1e-9)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(alphas))
    # The cosine is half way at the middle of the logarithm of the step.
    middle = round(math.sqrt(turn))
    assert alphas[middle - 1] == pytest.approx((1 + math.cos(math.acos(2 * least - 1) / 2)) / 2, abs=0.02)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("gamma", [0.01, 0.5, 0.99])
def test_schedule_of_alpha_in_short_trainings(steps, gamma):
    alphas = [scheduled_alpha(step, steps, gamma=gamma, least=0.2) for step in range(1, steps + 1)]
    assert all(0 <= alpha <= 1 for alpha in alphas)
    assert alphas == sorted(alphas, reverse=True)


def gradients(recipe, data) -> Any:
    """Run the batches of one optimiser step through the module as Lightning does; return the module before the step."""
    module = TrainingModule(make(), recipe, index=None, val_index=None)  # type: ignore[arg-type]
    module.train()
    for batch in data:
        (module.training_step(batch, 0) / recipe.accumulate).backward()
    # Ten steps per epoch, the last of one batch.
    trainer = SimpleNamespace(
        global_step=4, num_training_batches=9 * recipe.accumulate + 1, strategy=SimpleNamespace(reduce=reduce), world_size=1
    )
    module._trainer = trainer  # type: ignore[assignment]
    assert module.joint is not None
    module.on_before_optimizer_step(None)  # type: ignore[arg-type]
    return module


def reduce(tensor, reduce_op):
    """Average over processes, of which there is one."""
    assert reduce_op == "mean"
    return tensor


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_algorithm_1(rule, accumulate):
    """Against two copies of the model, one for each loss, with gradients summed over the accumulated batches."""
    own = {"constant": {"joint_alpha": 0.3}, "schedule": {"joint_gamma": 0.3, "joint_lambda": 0.2}}.get(rule, {})
    recipe = small(joint=rule, **own, accumulate=accumulate)
    data = batches(accumulate)
    ours = gradients(recipe, data)
    twins: list[Any] = [make().to(memory_format=torch.channels_last).train() for _ in range(2)]
    for twin, which in zip(twins, ("first", "second"), strict=True):
        for batch in data:
            scores, own = twin.scores_and_enopr(batch.clips.squeeze(1))
            loss = own if which == "first" else F.cross_entropy(scores, batch.labels)
            (loss / accumulate).backward()
    first, second = (torch.cat([value.grad.flatten() for value in twin.projection.parameters()]) for twin in twins)
    alpha = {"decoupled": 1.0, "constant": 0.3, "schedule": scheduled_alpha(5, 20, gamma=0.3, least=0.2)}.get(rule)
    alpha = pareto_alpha(first, second).item() if alpha is None else alpha
    mixed = torch.cat([value.grad.flatten() for value in ours.model.projection.parameters()])
    assert (first - second).abs().max() > 1e-4
    torch.testing.assert_close(mixed, alpha * first + (1 - alpha) * second, rtol=1e-3, atol=1e-5)
    scale = 1 - alpha if rule in {"constant", "schedule"} else 1
    for part in ("backbone", "head"):
        for value, wanted in zip(getattr(ours.model, part).parameters(), getattr(twins[1], part).parameters(), strict=True):
            torch.testing.assert_close(value.grad, scale * wanted.grad, rtol=1e-3, atol=1e-5)
    means = ours.joint.means()
    assert means["alpha"] == pytest.approx(alpha, abs=1e-4)
    assert means["enopr"] > 0
    assert ours.joint.means() == {}


def test_gradients_are_averaged_over_processes(monkeypatch):
    """L1's gradient goes through `reduce`: a reduction that doubles it doubles the result."""
    recipe = small(joint="decoupled")
    plain = gradients(recipe, batches(1))
    monkeypatch.setitem(globals(), "reduce", lambda tensor, reduce_op: 2 * tensor)
    doubled = gradients(recipe, batches(1))
    for value, other in zip(plain.model.projection.parameters(), doubled.model.projection.parameters(), strict=True):
        torch.testing.assert_close(2 * value.grad, other.grad)


def test_a_model_with_one_loss_has_no_joint_training():
    model = build_model("tsm-r18", classes=4, spec=SPEC, width=0.25)
    module = TrainingModule(model, small(joint="decoupled"), index=None, val_index=None)  # type: ignore[arg-type]
    assert module.joint is None


@pytest.mark.parametrize(
    "changes",
    [{"joint": "decoupled"}, {"joint": "constant", "accumulate": 2}, {"joint": "schedule", "precision": "bf16"}, {"da_subspace": 1}],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_da_tsm_trains_by_every_rule(tmp_path, train_index, val_index, changes):
    result = fit(small(blocks=1, **changes), index=train_index, val_index=val_index, out=tmp_path / "run")
    assert 0 < result.rows[-1]["train_loss"] < 20
    loaded = load_checkpoint(result.last)
    torch.manual_seed(0)
    grid: dict[str, Any] = {"da_stride": 2, "da_kernel": 3}
    fresh = build_model("da-tsm-r18", classes=len(loaded.labels), spec=loaded.spec, width=0.25, blocks=1, **grid)
    for part in ("projection.describe.weight", "projection.mlp.3.weight", "backbone.conv1.weight"):
        moved = (loaded.model.get_parameter(part) - fresh.get_parameter(part)).abs().max()
        assert moved > 1e-4, part


@pytest.mark.slow
@pytest.mark.parametrize("name", ["da-x3d-xs", "da-vit-b"])
def test_da_x3d_and_da_vit_train(tmp_path, train_index, name):
    fields = {"segments": 2, "frames_per_segment": 3, "size": 32, "short_side": 32, "epochs": 1, "batch_size": 8, "threads": 1}
    recipe = find_recipe(f"{name}/moving-shapes", accelerator="cpu", **fields)
    result = fit(recipe, index=train_index, val_index=None, out=tmp_path / "run")
    assert 0 < result.rows[0]["train_loss"] < 20


def test_recipes_of_appendix_a():
    tsm = find_recipe("da-tsm-r50/something-v1")
    assert (tsm.lr, tsm.batch_size, tsm.epochs, tsm.weight_decay, tsm.dropout) == (0.12, 256, 50, 8e-4, 0.8)
    assert (tsm.label_smoothing, tsm.clip_gradient, tsm.head_decay, tsm.flip) == (0.1, 20, 5, False)
    assert tsm.options == AppearanceOptions(joint="mgda")
    assert (tsm.segments, tsm.frames_per_segment, tsm.size) == (8, 4, 224)
    rates = [tsm.rate_at(epoch) for epoch in (0, 3.5, 7, 28.5, 50)]
    assert rates == pytest.approx([0.0048, 0.0624, 0.12, 0.06, 0], abs=1e-6)
    small_net, large = find_recipe("da-x3d-xs/something-v1"), find_recipe("da-x3d-m/something-v1")
    assert (small_net.segments, small_net.frames_per_segment, small_net.size, small_net.weight_decay) == (4, 8, 160, 4e-4)
    assert (large.segments, large.frames_per_segment, large.size, large.pretrained) == (16, 3, 224, False)
    vit = find_recipe("da-vit-b/something-v1")
    assert (vit.lr, vit.batch_size, vit.epochs, vit.dropout, vit.clip_gradient) == (0.004, 64, 15, 0, 0)
    assert vit.options == AppearanceOptions(projection_rate=5)
    assert vit.rate_at(0) == pytest.approx(0.004)
    # Small frames have about the paper's number of subspaces, with another stride.
    for name in ("da-tsm-r18/moving-shapes", "da-tsm-r18/tiny", "da-x3d-xs/tiny", "da-vit-b/tiny"):
        little = find_recipe(name)
        assert isinstance(little.options, AppearanceOptions)
        assert abs(little.size / little.options.da_stride - 224 / 8) <= 4
    assert isinstance(find_recipe("da-tsm-r18/tiny", da_input="rgb").options, AppearanceOptions), (
        "da_kernel and da_stride of the recipe do not exclude other inputs"
    )
    kinetics = find_recipe("da-tsm-r50/kinetics400")
    assert (kinetics.lr, kinetics.lr_batch, kinetics.epochs, kinetics.segments, kinetics.frames_per_segment) == (0.08, 512, 100, 16, 8)
    fine = find_recipe("da-tsm-r50/hmdb51")
    assert (fine.lr, fine.epochs, fine.partial_bn, fine.segments, fine.frames_per_segment) == (0.001, 10, True, 8, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joint_alpha": 1.5}, "joint_alpha is 1.5"),
        ({"joint": "constant", "joint_alpha": 1.0}, "recognition would not learn"),
        ({"joint": "separate"}, "joint is 'separate'; it must be one of decoupled, constant, schedule, mgda"),
        ({"joint_gamma": 1.0}, "joint_gamma is 1.0"),
        ({"joint_lambda": -0.1}, "joint_lambda is -0.1"),
        ({"joint_alpha": 0.3}, "joint_alpha is 0.3, but joint is mgda, not constant: leave it out"),
        (
            {"joint": "decoupled", "joint_gamma": 0.3, "joint_lambda": 0.2},
            "joint_gamma is 0.3, joint_lambda is 0.2, but joint is decoupled, not schedule: leave them out",
        ),
        ({"da_subspace": 4}, "da_subspace is 4"),
        ({"projection_rate": -1.0}, "projection_rate is -1.0"),
    ],
)
def test_invalid_recipes_are_refused(changes, message):
    with pytest.raises(FlowlessError, match=message):
        small(**changes)


def with_statistics(model):
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(cast(torch.Tensor, norm.running_mean))
    return model


def test_the_earlier_name_of_decoupled_is_read():
    written = small(joint="decoupled").to_dict() | {"joint": "separate"}
    assert Recipe.from_dict(written) == small(joint="decoupled")


def test_partial_bn_leaves_the_backbones_first_norm_trainable():
    """The first batch norm, which partial_bn keeps trainable, is the backbone's, not PWTP's."""
    module = TrainingModule(with_statistics(make()), small(partial_bn=True), index=None, val_index=None)  # type: ignore[arg-type]
    module.train()
    norms = {name: part.training for name, part in module.model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert [name for name, training in norms.items() if training] == ["backbone.bn1"]

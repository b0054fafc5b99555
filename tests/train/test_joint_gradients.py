"""Every parameter's gradient under each rule of joint training, against Eq. 9 and Algorithm 1 in NumPy float64.

The reference computes both losses of a small DA-TSM in NumPy and differentiates them by central differences, without PyTorch.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.loading.loader import Batch
from flowless.train.loop.joint_training import scheduled_alpha
from flowless.train.loop.training_module import TrainingModule
from flowless.train.models import build_model
from flowless.train.recipes import find_recipe

SPEC = ClipSpec(segments=2, frames_per_segment=3, height=32, width=32, short_side=32)
LABELS = [1, 3]


@pytest.fixture(scope="module")
def clips():
    return torch.randint(0, 256, (2, 1, *SPEC.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def losses(reference, clips, state):
    """Return L1 (Eq. 7 and 8) and L2 (cross entropy) of uint8 clips `[B, N, T, H, W, 3]` and a float64 state dictionary."""
    frames = (clips.astype(np.float64) / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    stacks = frames.transpose(0, 1, 2, 5, 3, 4).reshape(-1, *frames.shape[2:3], 3, 32, 32)
    part = {
        name: {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
        for name in ("projection.", "backbone.")
    }
    residual = reference.temporal_projection(stacks, part["projection."], 1)
    own = (residual**2).sum(1).mean()
    features = reference.resnet18(residual.mean(1), part["backbone."], SPEC.segments, shifted=True).reshape(len(clips), SPEC.segments, -1)
    scores = (features @ state["head.pred.weight"].T + state["head.pred.bias"]).mean(1)
    return np.array([own, reference.cross_entropy(scores, LABELS)])


def step(rule, clips, **changes):
    """Return the module after one step of a rule, with mixed gradients; batch norm uses running statistics, as the reference does."""
    fields = {"segments": 2, "frames_per_segment": 3, "size": 32, "short_side": 32, "batch_size": 2, "epochs": 2, "dropout": 0.0}
    torch.manual_seed(3)
    model = build_model("da-tsm-r18", classes=4, spec=SPEC, width=0.125, dropout=0.0)
    for value in model.state_dict().values():
        if value.dim() == 1:  # the initial 0 and 1 of batch norms and biases could hide a wrong gradient
            value.add_(torch.rand_like(value) * 0.2)
    recipe = find_recipe("da-tsm-r18/moving-shapes", joint=rule, **(fields | changes))
    module = TrainingModule(model, recipe, index=None, val_index=None)  # type: ignore[arg-type]
    module.eval()
    module.training_step(Batch(clips=clips, labels=torch.tensor(LABELS), ids=["a", "b"]), 0).backward()
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
    module._trainer = SimpleNamespace(global_step=4, num_training_batches=10, strategy=strategy, world_size=1)  # type: ignore[assignment]
    module.on_before_optimizer_step(None)  # type: ignore[arg-type]
    return module


@pytest.fixture(scope="module")
def slopes(reference, clips):
    """Return a function that computes the derivatives of both losses along a direction of one parameter.

    Every rule starts from the same weights, so a direction that occurred before is not computed again.
    """
    known: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    pixels = clips.squeeze(1).numpy()

    def slope(state, name, direction):
        for other, found in known.setdefault(name, []):
            if np.abs(other - direction).max() < 1e-5 * np.abs(direction).max():
                return found
        ahead, behind = (losses(reference, pixels, state | {name: state[name] + at * 1e-6 * direction}) for at in (1, -1))
        known[name].append((direction, (ahead - behind) / 2e-6))
        return known[name][-1][1]

    return slope


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("decoupled", {}),
        ("constant", {"joint_alpha": 0.3}),
        ("constant", {"joint_alpha": 0.0}),
        ("schedule", {"joint_gamma": 0.3, "joint_lambda": 0.2}),
        ("mgda", {}),
    ],
)
def test_gradients_equal_eq_9_and_algorithm_1(slopes, clips, rule, changes):
    module = step(rule, clips, **changes)
    state = {name: value.numpy().astype(np.float64) for name, value in module.model.state_dict().items()}
    assert module.joint is not None
    alpha = module.joint.means()["alpha"]
    if rule == "constant":
        assert alpha == pytest.approx(changes["joint_alpha"])
    elif rule == "schedule":
        assert alpha == pytest.approx(scheduled_alpha(5, 20, gamma=0.3, least=0.2))
    # The factors of L1's and L2's gradients: for PWTP, and for all other parameters.
    shared = (alpha, 1 - alpha) if rule != "decoupled" else (1, 0)
    rest = (0, 1 - alpha) if rule in {"constant", "schedule"} else (0, 1)
    rng = np.random.default_rng(0)
    moved = 0
    for name, value in module.model.named_parameters():
        assert value.grad is not None
        gradient = value.grad.numpy().astype(np.float64)
        length = float(np.linalg.norm(gradient))
        noise = rng.standard_normal(gradient.shape)
        # Along the gradient, which checks its length, and along a random direction.
        for direction in (gradient / max(length, 1e-12), noise / np.linalg.norm(noise)):
            wanted = float(np.dot(shared if name.startswith("projection.") else rest, slopes(state, name, direction)))
            assert float((gradient * direction).sum()) == pytest.approx(wanted, rel=1e-2, abs=1e-2 * length + 1e-6), name
        moved += length > 1e-5
    assert moved > 60


def test_mgdas_alpha_minimises_the_norm(reference, clips):
    """For alpha inside (0, 1) the mixture of least norm is orthogonal to the gradients' difference: both losses fall equally (Eq. 11)."""
    module = step("mgda", clips)
    assert module.joint is not None
    alpha = module.joint.means()["alpha"]
    gradients = {}
    for name, value in module.model.named_parameters():
        if name.startswith("projection.") and value.grad is not None:
            gradients[name] = value.grad.numpy().astype(np.float64)
    state = {name: value.numpy().astype(np.float64) for name, value in module.model.state_dict().items()}
    length = np.sqrt(sum((value**2).sum() for value in gradients.values()))
    ahead, behind = (
        losses(
            reference,
            clips.squeeze(1).numpy(),
            state | {name: state[name] + at * 1e-6 * value / length for name, value in gradients.items()},
        )
        for at in (1, -1)
    )
    first, second = (ahead - behind) / 2e-6
    if 0 < alpha < 1:
        assert first == pytest.approx(second, rel=1e-2)
    else:
        assert (first > second) == (alpha == 0)
    assert min(first, second) == pytest.approx(length, rel=1e-2)

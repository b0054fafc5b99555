"""Joint training: two losses that share PWTP's parameters (Dynamic Appearance, sections 3.4 and 3.5, appendix D).

PWTP's parameters (Theta 1) have gradients of two losses: L2, the recognition loss, and L1, the norm of PWTP's projection residual. They
learn by alpha * grad L1 + (1 - alpha) * grad L2. The rest of the network (Theta 2) has no gradient of L1; its gradient of L2 is scaled
as the option `joint` demands:

- mgda: unscaled, as in Algorithm 1;
- constant, schedule: times (1 - alpha), since Eq. 9, alpha * L1 + (1 - alpha) * L2, is minimised over both;
- decoupled: unscaled, and PWTP learns by L1 alone. Table 5's "separate training" optimises the two tasks separately; the paper does not
  say in which order. Here both learn at the same time, and neither loss changes the other's parameters.

L1 costs one additional backward pass, through PWTP only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowless.train.models import AppearanceRecognizer, Recognizer
from flowless.train.models.options import AppearanceOptions
from flowless.train.recipes import Recipe


def pareto_alpha(first: Tensor, second: Tensor) -> Tensor:
    """Return MGDA's weight of the first of two gradients `[P]` (Eq. 12): the alpha in [0, 1] that minimises the norm of their mixture.

    For equal gradients, where every alpha gives the same norm, it is one half.
    """
    difference = second - first
    square = difference.square().sum()
    alpha = torch.dot(difference, second) / square
    return torch.where(square > 0, alpha, torch.full_like(alpha, 0.5)).clamp(0, 1)


def scheduled_alpha(step: int, steps: int, *, gamma: float, least: float) -> float:
    """Return the scale scheduler's alpha (Eq. 13) of step m = 1, 2, … of M.

    The formula cannot be computed as printed: with gamma >= 1 there is no second part, cos^-1(pi / (2 lambda - 1)) is not real,
    and log m does not restart for the second part. The curve that the paper describes falls from 1 along a cosine to lambda at
    m = gamma M, then to 0 at M, over the logarithm of the step. It results from gamma <= 1, the base (gamma M)^(pi / cos^-1(2 lambda - 1))
    in the first part, and m - gamma M in the place of m in the second. This function computes that.

    Args:
        step: m, the optimiser's step, from 1.
        steps: M, the number of steps of the whole training.
        gamma: Share of the training after which alpha is lambda.
        least: lambda.
    """
    turn = gamma * steps
    if step < turn:
        share = math.acos(2 * least - 1) / math.pi
        return (1 + math.cos(math.pi * share * _log_share(step, turn))) / 2
    return least * (1 + math.cos(math.pi * _log_share(step - turn, steps - turn))) / 2


def _log_share(done: float, whole: float) -> float:
    """Return log(done) / log(whole), limited to [0, 1]."""
    if whole <= 1:
        return 1.0 if done >= whole else 0.0
    return min(1.0, math.log(max(1.0, done)) / math.log(whole))


def joint_training(model: Recognizer, recipe: Recipe) -> JointTraining | None:
    """Return what joins a model's two losses; None for a model with one loss."""
    return JointTraining(model, recipe) if isinstance(model, AppearanceRecognizer) else None


class JointTraining:
    """Accumulates PWTP's two gradients over the batches of a step, and mixes them before the optimiser's step.

    They are mixed once a step, on complete gradients: after accumulation, after averaging over processes, after fp16's loss scale is
    divided out, and before clipping. So alpha is that of the whole batch. PWTP runs in fp32 under mixed precision, and L1's gradient is
    never multiplied by fp16's loss scale.
    """

    def __init__(self, model: AppearanceRecognizer, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        assert isinstance(recipe.options, AppearanceOptions)
        self.options = recipe.options
        self._gradient: Tensor | None = None
        #: The epoch's values so far: L1 of every batch, alpha of every step.
        self._history: dict[str, list[Tensor]] = {"enopr": [], "alpha": []}

    @property
    def shared(self) -> list[nn.Parameter]:
        """PWTP's trainable parameters: partial BN may have frozen its batch norm."""
        return [parameter for parameter in self.model.projection.parameters() if parameter.requires_grad]

    @property
    def rest(self) -> list[nn.Parameter]:
        """All other parameters of the model."""
        own = {id(value) for value in self.model.projection.parameters()}
        return [value for value in self.model.parameters() if id(value) not in own]

    def branch_scores(self, clip: Tensor) -> Tensor:
        """Return scores as `Recognizer.branch_scores` does, `[1, B, classes]`, and accumulate L1's gradient of this batch."""
        scores, loss = self.model.scores_and_enopr(clip)
        with torch.autocast(clip.device.type, enabled=False):
            # The graph is kept, because the recognition loss is propagated back through the same PWTP.
            parts = torch.autograd.grad(loss / self.recipe.accumulate, self.shared, retain_graph=True)
        gradient = _flat(parts)
        self._gradient = gradient if self._gradient is None else self._gradient + gradient
        self._history["enopr"].append(loss.detach())
        return scores[None]

    def mix(self, *, step: int, steps: int, reduce: Callable[[Tensor], Tensor]) -> None:
        """Replace grad L2 in the shared parameters' `grad` by alpha * grad L1 + (1 - alpha) * grad L2; scale the others by Eq. 9.

        Args:
            step: The optimiser's step, from 1.
            steps: The number of steps of the whole training.
            reduce: Averages a tensor over the processes that train together; grad L2 is already averaged.
        """
        assert self._gradient is not None
        first = reduce(self._gradient)
        self._gradient = None
        shared = self.shared
        second = _flat([torch.zeros_like(value) if value.grad is None else value.grad for value in shared])
        alpha = self._alpha(first, second, step=step, steps=steps)
        mixed = alpha * first + (1 - alpha) * second
        for value, part in zip(shared, mixed.split([value.numel() for value in shared]), strict=True):
            value.grad = part.view_as(value).clone() if value.grad is None else value.grad.copy_(part.view_as(value))
        if self.options.joint in {"constant", "schedule"}:
            for value in self.rest:
                if value.grad is not None:
                    value.grad.mul_(1 - alpha)
        self._history["alpha"].append(alpha)

    def means(self) -> dict[str, float]:
        """Return this process's means of `enopr` and `alpha` over the epoch, and reset them."""
        means = {name: torch.stack(values).mean().item() for name, values in self._history.items() if values}
        self._history = {name: [] for name in self._history}
        return means

    def history(self) -> dict[str, list[float]]:
        """Return the epoch's values of `enopr` and `alpha` so far, for a saved state; call it only between two steps of the optimiser."""
        return {name: torch.stack(values).tolist() for name, values in self._history.items() if values}

    def restore(self, history: dict[str, list[float]]) -> None:
        """Continue an epoch from what `history` returned."""
        device = self.shared[0].device
        self._history = {name: list(torch.tensor(history.get(name, []), device=device)) for name in self._history}

    def _alpha(self, first: Tensor, second: Tensor, *, step: int, steps: int) -> Tensor:
        options = self.options
        if options.joint == "mgda":
            return pareto_alpha(first, second)
        if options.joint == "schedule":
            return first.new_tensor(scheduled_alpha(step, steps, gamma=options.joint_gamma, least=options.joint_lambda))
        # Decoupled: PWTP learns by L1 alone.
        return first.new_tensor(1.0 if options.joint == "decoupled" else options.joint_alpha)


def _flat(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])

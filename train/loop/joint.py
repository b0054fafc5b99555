"""Joint training: two losses that share PWTP's parameters (Dynamic Appearance, sections 3.4 and 3.5, appendix D).

PWTP (Theta 1) is shared by the recognition loss L2 and the loss L1 of its projection residual, and moved along
alpha * grad L1 + (1 - alpha) * grad L2. The rest of the network (Theta 2) has no gradient of L1. Of L2's it gets what each rule says:

- mgda: the whole of it, as Algorithm 1 has it;
- constant, schedule: (1 - alpha) times it, since they minimise Eq. 9, alpha * L1 + (1 - alpha) * L2, over both;
- decoupled: the whole of it, while PWTP has L1's alone. Table 5's "separate training" optimises the two tasks one apart from the
  other; the paper does not say in which order. Here both learn at the same time, and neither loss moves the other's parameters.

L1 costs one backward pass through PWTP alone.
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
    """Return MGDA's weight of the first of two gradients `[P]` (Eq. 12): the alpha in [0, 1] that makes their mixture shortest.

    Equal gradients, for which every alpha is as good, get one half.
    """
    difference = second - first
    square = difference.square().sum()
    alpha = torch.dot(difference, second) / square
    return torch.where(square > 0, alpha, torch.full_like(alpha, 0.5)).clamp(0, 1)


def scheduled_alpha(step: int, steps: int, *, gamma: float, least: float) -> float:
    """Return the scale scheduler's alpha (Eq. 13) of step m = 1, 2, … of M.

    As printed the formula cannot be computed: gamma >= 1 leaves no second part, cos^-1(pi / (2 lambda - 1)) is no real number,
    and log m restarts nowhere. What gives the curves described (from 1 by a cosine to lambda at m = gamma M, then to 0 at M, over
    the logarithm of time) is the base (gamma M)^(pi / cos^-1(2 lambda - 1)) in the first part, m - gamma M for m in the
    second, and gamma <= 1. That is computed here.

    Args:
        step: m, the optimiser's step, from 1.
        steps: M, all steps of the training.
        gamma: Share of the training after which alpha is lambda.
        least: lambda.
    """
    turn = gamma * steps
    if step < turn:
        share = math.acos(2 * least - 1) / math.pi
        return (1 + math.cos(math.pi * share * _log_share(step, turn))) / 2
    return least * (1 + math.cos(math.pi * _log_share(step - turn, steps - turn))) / 2


def _log_share(done: float, whole: float) -> float:
    """Return log(done) / log(whole), the share of a time's logarithm that is over, between 0 and 1."""
    if whole <= 1:
        return 1.0 if done >= whole else 0.0
    return min(1.0, math.log(max(1.0, done)) / math.log(whole))


def joint_training(model: Recognizer, recipe: Recipe) -> JointTraining | None:
    """Return how a model's two losses are joined; None for a model with one loss."""
    return JointTraining(model, recipe) if isinstance(model, AppearanceRecognizer) else None


class JointTraining:
    """Gathers PWTP's two gradients over the batches of a step, and mixes them before the optimiser's step.

    Mixing happens once a step, on whole gradients: after accumulation, after the sum over processes, after fp16's scale is
    taken out and before clipping. So alpha is that of the whole batch. PWTP runs in fp32 under mixed precision, and L1's
    gradient never meets fp16's scale.

    Attributes:
        alpha: Mean of alpha over the epoch's steps.
        enopr: Mean of L1 over the epoch's batches.
    """

    def __init__(self, model: AppearanceRecognizer, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        assert isinstance(recipe.options, AppearanceOptions)
        self.options = recipe.options
        self._gradient: Tensor | None = None
        self._sums: dict[str, list[Tensor]] = {"enopr": [], "alpha": []}

    @property
    def shared(self) -> list[nn.Parameter]:
        """PWTP's parameters that learn: partial BN may have frozen its batch norm."""
        return [parameter for parameter in self.model.projection.parameters() if parameter.requires_grad]

    @property
    def rest(self) -> list[nn.Parameter]:
        """All other parameters of the model."""
        own = {id(value) for value in self.model.projection.parameters()}
        return [value for value in self.model.parameters() if id(value) not in own]

    def branch_scores(self, clip: Tensor) -> Tensor:
        """Return scores as `Recognizer.branch_scores` does, `[1, B, classes]`, and keep L1's gradient of this batch."""
        scores, loss = self.model.scores_and_enopr(clip)
        with torch.autocast(clip.device.type, enabled=False):
            # The graph is kept: the recognition loss goes back through the same PWTP.
            parts = torch.autograd.grad(loss / self.recipe.accumulate, self.shared, retain_graph=True)
        gradient = _flat(parts)
        self._gradient = gradient if self._gradient is None else self._gradient + gradient
        self._sums["enopr"].append(loss.detach())
        return scores[None]

    def mix(self, *, step: int, steps: int, reduce: Callable[[Tensor], Tensor]) -> None:
        """Put alpha * grad L1 + (1 - alpha) * grad L2 where grad L2 is, in the shared parameters' `grad`; scale the others' by Eq. 9.

        Args:
            step: The optimiser's step, from 1.
            steps: All steps of the training.
            reduce: Averages a tensor over the processes that train together, as grad L2 already is.
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
        self._sums["alpha"].append(alpha)

    def means(self) -> dict[str, float]:
        """Return the epoch's mean `enopr` and `alpha`, of this process, and start anew."""
        means = {name: torch.stack(values).mean().item() for name, values in self._sums.items() if values}
        self._sums = {name: [] for name in self._sums}
        return means

    def sums(self) -> dict[str, list[float]]:
        """Return what `means` will be of, so far; only between two steps of the optimiser."""
        return {name: torch.stack(values).tolist() for name, values in self._sums.items() if values}

    def take_back(self, sums: dict[str, list[float]]) -> None:
        """Go on from what `sums` has returned."""
        device = self.shared[0].device
        self._sums = {name: list(torch.tensor(sums.get(name, []), device=device)) for name in self._sums}

    def _alpha(self, first: Tensor, second: Tensor, *, step: int, steps: int) -> Tensor:
        options = self.options
        if options.joint == "mgda":
            return pareto_alpha(first, second)
        if options.joint == "schedule":
            return first.new_tensor(scheduled_alpha(step, steps, gamma=options.joint_gamma, least=options.joint_lambda))
        # Decoupled: PWTP learns by its own loss, and recognition does not move it.
        return first.new_tensor(1.0 if options.joint == "decoupled" else options.joint_alpha)


def _flat(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])

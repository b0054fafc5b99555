"""What training minimises: scores against labels, or two augmentations of each clip besides against each other.

Twins Training: Wang et al., Learning SpatioTemporal and Motion Features in a Unified 2D Network for Action Recognition, section
3.5. It is a way to train, for any model; what is trained is the same network and costs the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flowless.train.recipes import Recipe

#: Scores `[B * draws, classes]`, the draws of a clip adjacent, and labels `[B * draws]` to a loss.
Objective = Callable[[Tensor, Tensor], Tensor]


def objective_of(recipe: Recipe) -> Objective:
    """Return what a recipe minimises, for scores in float32."""

    def plain(scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)

    def twins(scores: Tensor, labels: Tensor) -> Tensor:
        # Both halves are as large: the mean over all clips is the mean of the two cross entropies of Eq. 10.
        one, other = scores.unflatten(0, (-1, recipe.draws)).unbind(1)
        return plain(scores, labels) + recipe.twins_lambda * correlation_loss(one, other, beta=recipe.twins_beta)

    return twins if recipe.objective == "twins" else plain


def cross_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Correlate every class of one batch of scores with every class of the other (Eq. 8).

    A class's scores over the batch are one vector, which is divided by its length; as the equation is written, no mean is
    subtracted. A class that scores 0 in the whole batch correlates with nothing.

    Args:
        one: `[B, classes]`.
        other: `[B, classes]`, of the same clips under another augmentation.

    Returns:
        `[classes, classes]`, from -1 to 1.
    """
    return F.normalize(one, dim=0).T @ F.normalize(other, dim=0)


def correlation_loss(one: Tensor, other: Tensor, *, beta: float) -> Tensor:
    """Pull each class's scores under both augmentations together, and those of different classes apart (Eq. 9).

    Args:
        one: `[B, classes]`; under several processes, the clips of this one.
        other: `[B, classes]`, of the same clips under another augmentation.
        beta: Weight of the pairs of different classes.
    """
    # Mixed precision would take the product in a narrow type.
    with torch.autocast(one.device.type, enabled=False):
        matrix = cross_correlation(one.float(), other.float())
    same = matrix.diagonal()
    return (1 - same).square().sum() + beta * (matrix.square().sum() - same.square().sum())

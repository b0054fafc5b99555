"""The training objectives: cross entropy, or Twins Training, which also correlates two augmentations of each clip.

Twins Training: Wang et al., Learning SpatioTemporal and Motion Features in a Unified 2D Network for Action Recognition, section
3.5. It works with any model, and the trained model costs the same as with cross entropy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flowless.train.recipes import Recipe

#: From scores `[B * draws, classes]`, the augmentations of a clip adjacent, and labels `[B * draws]` to a loss.
Objective = Callable[[Tensor, Tensor], Tensor]


def objective_of(recipe: Recipe) -> Objective:
    """Return a recipe's loss function, for scores in float32."""

    def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)

    def twins(scores: Tensor, labels: Tensor) -> Tensor:
        # Both augmentations have equally many clips, so the mean over all is the mean of the two cross entropies of Eq. 10.
        one, other = scores.unflatten(0, (-1, recipe.draws)).unbind(1)
        return cross_entropy(scores, labels) + recipe.twins_lambda * correlation_loss(one, other, beta=recipe.twins_beta)

    return twins if recipe.objective == "twins" else cross_entropy


def cross_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Correlate every class of one batch of scores with every class of the other (Eq. 8).

    A class's scores over the batch are one vector, which is divided by its length; as in the equation, no mean is
    subtracted. A class whose scores are all 0 has correlation 0 with every class.

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
        one: `[B, classes]`; with several processes, the clips of this one.
        other: `[B, classes]`, of the same clips under another augmentation.
        beta: Weight of the pairs of different classes.
    """
    # Autocast would compute the product in half precision.
    with torch.autocast(one.device.type, enabled=False):
        matrix = cross_correlation(one.float(), other.float())
    same = matrix.diagonal()
    return (1 - same).square().sum() + beta * (matrix.square().sum() - same.square().sum())

"""Optimiser and parameter groups: the learning rate and weight decay of each kind of layer, and frozen batch norms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from flowless.train.models import AppearanceRecognizer, MotionRecognizer
from flowless.train.models.layers.stm_block import ChannelwiseMotion, ChannelwiseTemporalConv
from flowless.train.models.options import AppearanceOptions
from flowless.train.recipes import Recipe

#: Group -> (factor on the learning rate, factor on the weight decay), as in PAN's official code; the group channelwise is ours.
OFFICIAL_FACTORS = {
    "first_conv_weight": (5.0, 1.0),
    "first_conv_bias": (10.0, 0.0),
    "normal_weight": (1.0, 1.0),
    "normal_bias": (2.0, 0.0),
    "bn": (1.0, 0.0),
    "lr5_weight": (5.0, 1.0),
    "lr10_bias": (10.0, 0.0),
    "channelwise": (1.0, 0.0),
}
#: Layers whose scale and shift have no weight decay.
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)


def parameter_groups(
    model: nn.Module, *, layer_rates: bool = True, head_decay: float = 1.0, projection_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Sort a model's parameters into the groups of PAN's official code.

    The groups first_conv_* hold PA's filters; the first convolution of a backbone, and linear layers inside a backbone, are in normal_*
    like all other layers. PWTP's layers have separate groups. The group channelwise holds STM's channel-wise kernels over time
    (CSTM's temporal weights and CMM's 3x3 filters), without weight decay: they start at 1, as a batch norm's weights do, and select the
    segment that a channel takes; decay would pull that selection to zero. As ordinary convolutions (STM, Table 10) they are in normal_*, as
    is CSTM's 3x3 of either type.

    Args:
        model: What `build_model` made, or one of its `parts`.
        layer_rates: False gives every group the same rate; biases and norms still have no weight decay.
        head_decay: Factor on the weight decay of the linear layers after the backbone.
        projection_rate: Factor on PWTP's learning rate, in the place of the factors by layer.

    Returns:
        Groups for an optimiser, each with `name`, `params`, `lr_factor`, `decay_factor`; empty groups are left out.
    """
    factors = {name: (rate if layer_rates else 1.0, decay) for name, (rate, decay) in OFFICIAL_FACTORS.items()}
    factors["lr5_weight"] = (factors["lr5_weight"][0], head_decay)
    factors |= {"projection_weight": (projection_rate, 1.0), "projection_bias": (projection_rate, 0.0)}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in factors}
    first = model.persistence if isinstance(model, MotionRecognizer) else None
    projection = set(model.projection.modules()) if isinstance(model, AppearanceRecognizer) else set()
    motion = {module.move for module in model.modules() if isinstance(module, ChannelwiseMotion)}
    backbone = set(model.get_submodule("backbone").modules()) if hasattr(model, "backbone") else set()
    for module in model.modules():
        if module is first:
            weight, bias = "first_conv_weight", "first_conv_bias"
        elif module in projection:
            weight, bias = "projection_bias" if isinstance(module, _NORMS) else "projection_weight", "projection_bias"
        elif isinstance(module, _NORMS):
            weight = bias = "bn"
        elif isinstance(module, ChannelwiseTemporalConv) or (isinstance(module, nn.Conv2d) and module in motion and module.groups > 1):
            weight = bias = "channelwise"
        elif isinstance(module, nn.Linear) and module not in backbone:
            weight, bias = "lr5_weight", "lr10_bias"
        else:
            weight, bias = "normal_weight", "normal_bias"
        for name, parameter in module.named_parameters(recurse=False):
            groups[bias if name == "bias" else weight].append(parameter)
    return [
        {"name": name, "params": parameters, "lr_factor": factors[name][0], "decay_factor": factors[name][1]}
        for name, parameters in groups.items()
        if parameters
    ]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over the model's groups: SGD (no Nesterov) or AdamW, with the rates of epoch 0."""
    rate = recipe.options.projection_rate if isinstance(recipe.options, AppearanceOptions) else 1.0
    groups = parameter_groups(model, layer_rates=recipe.layer_rates, head_decay=recipe.head_decay, projection_rate=rate)
    for group in groups:
        group["lr"] = recipe.rate_at(0) * group["lr_factor"]
        group["weight_decay"] = recipe.weight_decay * group["decay_factor"]
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.rate_at(0), betas=(recipe.momentum, 0.999))
    return torch.optim.SGD(groups, lr=recipe.rate_at(0), momentum=recipe.momentum)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to `rate` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def norms_to_freeze(model: nn.Module, *, with_statistics: bool = True) -> list[str]:
    """Return the names of the batch norms that partial BN freezes: all but the first.

    Args:
        model: A network or a branch.
        with_statistics: Only those whose running statistics come from data. A new one (PWTP's, beside a pretrained backbone) would be
            frozen at mean 0 and variance 1, which are not the statistics of its input.
    """
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d))]
    return [name for name, norm in norms[1:] if not with_statistics or _has_statistics(norm)]


def _has_statistics(norm: nn.BatchNorm2d | nn.BatchNorm3d) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and bool((mean != 0).any() or (variance != 1).any())


def freeze_batch_norm(model: nn.Module, names: Iterable[str]) -> None:
    """Put batch norms into evaluation mode and stop their parameters from learning."""
    for norm in map(model.get_submodule, names):
        norm.eval()
        for parameter in norm.parameters():
            parameter.requires_grad_(False)

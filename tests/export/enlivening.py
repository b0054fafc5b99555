"""Weights as if trained: fresh ones leave half of a network without a say."""

from __future__ import annotations

from torch import nn


def enliven(model: nn.Module) -> None:
    """Give batch norms gains and shifts, and last layers weights, that make the scores depend on the whole network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.3)

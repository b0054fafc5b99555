"""Random weights with which every part of a network affects its scores; PyTorch's initial weights leave half of it without effect."""

from __future__ import annotations

from torch import nn


def randomize_weights(model: nn.Module) -> None:
    """Give batch norms gains and shifts, and last layers weights, that make the scores depend on the whole network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.3)

"""The temporal shift module (TSM): features of neighbouring segments trade places, at no cost in arithmetic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def temporal_shift(x: Tensor, *, segments: int, divisor: int = 8) -> Tensor:
    """Shift an eighth of the channels a segment back and an eighth a segment on, zeros at the ends.

    Written with slices and padding on four axes: assignment into slices would export as dozens of scatter nodes, and a
    fifth axis makes OpenVINO reorder the layout twice a block (a sixth of PAN-Lite's time in bf16).

    Args:
        x: `[B * N, C, H, W]`, the N segments of a clip adjacent.
        segments: N.
        divisor: With `fold = C // divisor`, channels `[0, fold)` take segment t+1, `[fold, 2 fold)` take t-1.

    Returns:
        The same shape.
    """
    fold = x.shape[1] // divisor
    segment = torch.arange(x.shape[0], device=x.device) % segments
    # What crosses from one clip into the next is multiplied with zero.
    not_last = (segment < segments - 1).to(x.dtype)[:, None, None, None]
    not_first = (segment > 0).to(x.dtype)[:, None, None, None]
    later = F.pad(x[1:, :fold], (0, 0, 0, 0, 0, 0, 0, 1)) * not_last
    earlier = F.pad(x[:-1, fold : 2 * fold], (0, 0, 0, 0, 0, 0, 1, 0)) * not_first
    return torch.cat([later, earlier, x[:, 2 * fold :]], dim=1)


class ShiftedConv(nn.Module):
    """A residual block's first convolution behind a temporal shift; the block's shortcut stays unshifted."""

    def __init__(self, net: nn.Module, *, segments: int, divisor: int = 8) -> None:
        super().__init__()
        self.net = net
        self.segments = segments
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        """Shift `[B * N, C, H, W]`, then convolve."""
        return self.net(temporal_shift(x, segments=self.segments, divisor=self.divisor))


def add_temporal_shift(backbone: nn.Module, *, segments: int, divisor: int = 8) -> int:
    """Put a shift before `conv1` of every residual block of layer1 to layer4 (official name: blockres).

    Networks whose layer3 has 23 blocks or more (ResNet-101) get it in every second block, as in the official code.

    Returns:
        The number of shifts.
    """
    every = 2 if len(backbone.get_submodule("layer3")._modules) >= 23 else 1
    count = 0
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        for position, block in enumerate(backbone.get_submodule(layer).children()):
            if position % every == 0:
                block.conv1 = ShiftedConv(block.get_submodule("conv1"), segments=segments, divisor=divisor)
                count += 1
    return count

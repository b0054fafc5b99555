"""Features of neighbouring segments change places; of some channels, that is the temporal shift module (TSM)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def later(x: Tensor, *, segments: int) -> Tensor:
    """Give each segment the next one's features, the last segment zeros.

    Written with slices, padding and a mask on four axes: assignment into slices would export as dozens of scatter nodes, and
    a fifth axis makes OpenVINO reorder the layout twice a block (a sixth of PAN-Lite's time in bf16).

    Args:
        x: `[B * N, C, H, W]`, the N segments of a clip adjacent.
        segments: N.

    Returns:
        The same shape.
    """
    # What crosses from one clip into the next is multiplied with zero.
    return F.pad(x[1:], (0, 0, 0, 0, 0, 0, 0, 1)) * _not_last(x, segments)


def earlier(x: Tensor, *, segments: int) -> Tensor:
    """Give each segment the previous one's features, the first segment zeros; see `later`."""
    return F.pad(x[:-1], (0, 0, 0, 0, 0, 0, 1, 0)) * (_segment(x, segments) > 0).to(x.dtype)[:, None, None, None]


def without_last(x: Tensor, *, segments: int) -> Tensor:
    """Make the features of each clip's last segment zero; see `later`."""
    return x * _not_last(x, segments)


def _not_last(x: Tensor, segments: int) -> Tensor:
    return (_segment(x, segments) < segments - 1).to(x.dtype)[:, None, None, None]


def _segment(x: Tensor, segments: int) -> Tensor:
    return torch.arange(x.shape[0], device=x.device) % segments


def temporal_shift(x: Tensor, *, segments: int, divisor: int = 8) -> Tensor:
    """Shift an eighth of the channels a segment back and an eighth a segment on, zeros at the ends.

    Args:
        x: `[B * N, C, H, W]`, the N segments of a clip adjacent.
        segments: N.
        divisor: With `fold = C // divisor`, channels `[0, fold)` take segment t+1, `[fold, 2 fold)` take t-1.

    Returns:
        The same shape.
    """
    fold = x.shape[1] // divisor
    on, back = later(x[:, :fold], segments=segments), earlier(x[:, fold : 2 * fold], segments=segments)
    return torch.cat([on, back, x[:, 2 * fold :]], dim=1)


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

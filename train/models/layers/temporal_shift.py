"""Shift features between neighbouring segments: the temporal shift module (TSM), in both directions or, for streams, from the past only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def from_next(x: Tensor, *, segments: int) -> Tensor:
    """Give each segment the features of the next one; the last segment gets zeros.

    Written with slices, padding and a mask on four axes: assignment into slices would be exported as dozens of scatter nodes, and
    with a fifth axis OpenVINO changes the memory layout twice per block (a sixth of PAN-Lite's time in bf16).

    Args:
        x: `[B * N, C, H, W]`, the N segments of a clip adjacent.
        segments: N.

    Returns:
        The same shape.
    """
    # Features that cross from one clip into another are multiplied by zero.
    return F.pad(x[1:], (0, 0, 0, 0, 0, 0, 0, 1)) * _not_last(x, segments)


def from_previous(x: Tensor, *, segments: int) -> Tensor:
    """Give each segment the features of the previous one; the first segment gets zeros. See `from_next`."""
    return F.pad(x[:-1], (0, 0, 0, 0, 0, 0, 1, 0)) * (_segment(x, segments) > 0).to(x.dtype)[:, None, None, None]


def zero_last(x: Tensor, *, segments: int) -> Tensor:
    """Set the features of each clip's last segment to zero; see `from_next`."""
    return x * _not_last(x, segments)


def _not_last(x: Tensor, segments: int) -> Tensor:
    return (_segment(x, segments) < segments - 1).to(x.dtype)[:, None, None, None]


def _segment(x: Tensor, segments: int) -> Tensor:
    return torch.arange(x.shape[0], device=x.device) % segments


def temporal_shift(x: Tensor, *, segments: int, divisor: int = 8) -> Tensor:
    """Replace an eighth of the channels by those of the next segment, and an eighth by those of the previous one; zeros at the ends.

    Args:
        x: `[B * N, C, H, W]`, the N segments of a clip adjacent.
        segments: N.
        divisor: With `fold = C // divisor`, channels `[0, fold)` come from segment t+1, `[fold, 2 fold)` from t-1.

    Returns:
        The same shape.
    """
    fold = x.shape[1] // divisor
    following, previous = from_next(x[:, :fold], segments=segments), from_previous(x[:, fold : 2 * fold], segments=segments)
    return torch.cat([following, previous, x[:, 2 * fold :]], dim=1)


def causal_shift(x: Tensor, *, segments: int, divisor: int = 8) -> Tensor:
    """Replace an eighth of the channels by those of the previous segment, with zeros at the first: TSM's online shift.

    The channels are the first ones, as in the official online model (mit-han-lab/temporal-shift-module, `online_demo/mobilenet_v2_tsm.py`,
    `InvertedResidualWithShift`: `torch.cat((shift_buffer, x[:, c // 8:]))`, and the next buffer is `x[:, :c // 8]`). That repository has no
    code that trains it; its author trains with several frames and a shift "in one side" (its issue 11).

    Args:
        x: `[B * N, C, H, W]`, the N segments of a clip adjacent.
        segments: N.
        divisor: Channels `[0, C // divisor)` come from segment t-1.

    Returns:
        The same shape.
    """
    fold = x.shape[1] // divisor
    return torch.cat([from_previous(x[:, :fold], segments=segments), x[:, fold:]], dim=1)


class ShiftedConv(nn.Module):
    """A temporal shift followed by a residual block's first convolution; the block's shortcut is not shifted.

    Attributes:
        causal: The shift is `causal_shift`.
        carried: None, except while `carry_between_steps` is in effect: then x is one segment of each of B streams, `[B, C, H, W]`, and this
            is `[B, C // divisor, H, W]`: before forward the channels of the previous segment, after it those of this one.
    """

    carried: Tensor | None

    def __init__(self, net: nn.Module, *, segments: int, divisor: int = 8, causal: bool = False) -> None:
        super().__init__()
        self.net = net
        self.segments = segments
        self.divisor = divisor
        self.causal = causal
        self.carried = None

    def forward(self, x: Tensor) -> Tensor:
        """Shift `[B * N, C, H, W]`, then convolve."""
        if self.carried is not None:
            fold = x.shape[1] // self.divisor
            # A copy, since a view would keep all channels in memory until the next step.
            previous, self.carried = self.carried, x[:, :fold].clone()
            return self.net(torch.cat([previous, x[:, fold:]], dim=1))
        shift = causal_shift if self.causal else temporal_shift
        return self.net(shift(x, segments=self.segments, divisor=self.divisor))


@contextmanager
def carry_between_steps(shifts: Sequence[ShiftedConv], state: Sequence[Tensor]) -> Iterator[None]:
    """Run causal shifts on one segment of each stream, with the channels of the segment before; afterwards they work on clips again.

    Args:
        shifts: The shifted convolutions; within the context, `carried` of each is the next step's state once it has run.
        state: For each of them `[B, C // divisor, H, W]`; zeros at the start of a stream.
    """
    try:
        for shift, channels in zip(shifts, state, strict=True):
            shift.carried = channels
        yield
    finally:
        for shift in shifts:
            shift.carried = None


def add_temporal_shift(backbone: nn.Module, *, segments: int, divisor: int = 8, causal: bool = False) -> int:
    """Put a shift before `conv1` of every residual block of layer1 to layer4 (TSM's blockres).

    Networks whose layer3 has 23 blocks or more (ResNet-101) have it in every second block, as in the official code. With `causal` it is
    `causal_shift`.

    Returns:
        The number of shifts.
    """
    every = 2 if len(backbone.get_submodule("layer3")._modules) >= 23 else 1
    count = 0
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        for position, block in enumerate(backbone.get_submodule(layer).children()):
            if position % every == 0:
                block.conv1 = ShiftedConv(block.get_submodule("conv1"), segments=segments, divisor=divisor, causal=causal)
                count += 1
    return count

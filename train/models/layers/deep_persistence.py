"""PA at other depths than 1: the paper's ablation of how deep the features are whose change is measured (section III-B, Fig. 2-B).

The paper stacks d basic layers, each "eight 7x7 convolutions with stride=1 and padding=3", and names no activation between
them; the official code, which has d = 1 only, has none either. So the stack is an affine map for every d: the change of its output is
the stack, without biases, applied to the difference of the frames. That takes m - 1 applications instead of m.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.train.pa.persistence import EPS, PersistenceOfAppearance


class DeepPersistence(PersistenceOfAppearance):
    """PA of depth 2 or more: as PersistenceOfAppearance, but the change is measured after d convolutions.

    1,184 parameters for the first layer and 3,144 for each further one. It consists of plain operators: unlike the op of depth 1 it
    stores its feature maps for the backward pass, and it is exported as ordinary convolutions.

    Args:
        depth: Number of layers d, at least 2.
        encoding: `e1`, the maps themselves, or `e2`, maps as attention on the mean feature map.
        std: Standard deviation of the first layer's initial filters. Those of the further layers have 1 / sqrt(8 x 49), which keeps the
            scale of their input; with the official 0.001 each layer would make the maps fifty times smaller.
    """

    def __init__(self, *, depth: int, encoding: Literal["e1", "e2"] = "e1", std: float = 0.001) -> None:
        if depth < 2:
            raise FlowlessError(f"DeepPersistence: depth is {depth}; it must be at least 2. Depth 1 is PersistenceOfAppearance.")
        super().__init__(encoding=encoding, std=std)
        same_scale = (8 * 7 * 7) ** -0.5
        self.deeper = nn.ParameterList(nn.Parameter(torch.empty(8, 8, 7, 7).normal_(0, same_scale)) for _ in range(depth - 1))
        # As at depth 1, the biases cancel in e1; they exist so that the number of parameters is the paper's.
        self.deeper_biases = nn.ParameterList(nn.Parameter(torch.zeros(8), requires_grad=encoding == "e2") for _ in range(depth - 1))

    def motion(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        """Return the PA maps `[..., m-1, H, W]` of frames `[..., m, 3, H, W]`; `scale` as at depth 1."""
        weight = self.weight if scale is None else self.weight * scale.view(1, 3, 1, 1)
        with single_precision(x):
            change = F.conv2d(frame_differences(x), weight, padding=3)
            for deeper in self.deeper:
                change = F.conv2d(change, deeper, padding=3)
            length = (change.square().sum(1) + EPS).sqrt()
        return _as_maps(length, x)

    def forward(self, x: Tensor, motion: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]` and their maps: `[B, N, m-1, H, W]`."""
        if self.encoding == "e1":
            return motion
        features = F.conv2d(x[..., :-1, :, :, :].flatten(0, -4), self.weight, self.bias, padding=3)
        for deeper, bias in zip(self.deeper, self.deeper_biases, strict=True):
            features = F.conv2d(features, deeper, bias, padding=3)
        return motion.sigmoid() * features.mean(1).reshape(motion.shape)


class PixelPersistence(nn.Module):
    """PA of depth 0: the change of the pixels themselves, without parameters.

    Args:
        encoding: `e1`, the maps themselves, or `e2`, maps as attention on the mean of the three colours.
    """

    def __init__(self, *, encoding: Literal["e1", "e2"] = "e1") -> None:
        super().__init__()
        if encoding not in {"e1", "e2"}:
            raise FlowlessError(f"PA: encoding is {encoding!r}; it must be 'e1' (maps as channels) or 'e2' (maps as attention).")
        self.encoding = encoding

    def motion(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        """Return the PA maps `[..., m-1, H, W]` of frames `[..., m, 3, H, W]`; `scale` as at depth 1."""
        change = frame_differences(x)
        if scale is not None:
            change = change * scale.view(3, 1, 1)
        return _as_maps((change.square().sum(1) + EPS).sqrt(), x)

    def forward(self, x: Tensor, motion: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]` and their maps: `[B, N, m-1, H, W]`."""
        return motion if self.encoding == "e1" else motion.sigmoid() * x[..., :-1, :, :, :].mean(-3)


def frame_differences(x: Tensor) -> Tensor:
    """Return the differences of adjacent frames, float or uint8, of all stacks: `[..., m, C, H, W]` to `[K, C, H, W]`."""
    x = x if x.is_floating_point() else x.float()  # differences of uint8 would wrap around
    return (x[..., 1:, :, :, :] - x[..., :-1, :, :, :]).flatten(0, -4)


def _as_maps(length: Tensor, x: Tensor) -> Tensor:
    return length.reshape(*x.shape[:-4], x.shape[-4] - 1, *x.shape[-2:])


def single_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context that disables autocast, as the op of depth 1 does; without autocast it does nothing, so that export works."""
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)  # not on the device meta
    return torch.autocast(kind, enabled=False) if available and torch.is_autocast_enabled(kind) else contextlib.nullcontext()

"""BN-Inception: the image network whose layers the disentangling recogniser is made of.

Ioffe and Szegedy, Batch Normalization, 2015, Figure 5; the variant of Temporal Segment Networks (Wang et al., ECCV 2016).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels of the first convolution. A narrower network keeps them, as the narrower ResNets do (see `backbone.resnet`).
STEM = 64


class Widths(NamedTuple):
    """One row of the published table: the outputs of an inception module's layers, 0 where a layer is not there."""

    one: int
    """1x1."""
    three_reduce: int
    """1x1 before the 3x3."""
    three: int
    """3x3."""
    double_reduce: int
    """1x1 before the two 3x3 that stand for a 5x5."""
    double: int
    """Each of those two."""
    pool: int
    """1x1 behind the pooling; 0: the pooled input itself, and the module halves rows and columns."""


#: Figure 5 of the paper. Its column "output size" says 576 for 4c and 4d and 1024 for 4e, where the layers beside it add up to
#: 608, 608 and 1056; the networks in use, TSN's among them, have the layers.
MODULES: dict[str, Widths] = {
    "3a": Widths(64, 64, 64, 64, 96, 32),
    "3b": Widths(64, 64, 96, 64, 96, 64),
    "3c": Widths(0, 128, 160, 64, 96, 0),
    "4a": Widths(224, 64, 96, 96, 128, 128),
    "4b": Widths(192, 96, 128, 96, 128, 128),
    "4c": Widths(160, 128, 160, 128, 160, 128),
    "4d": Widths(96, 128, 192, 160, 192, 128),
    "4e": Widths(0, 128, 192, 192, 256, 0),
    "5a": Widths(352, 192, 320, 160, 224, 128),
    "5b": Widths(352, 192, 320, 192, 224, 128),
}
#: The module whose pooling beside the convolutions is a maximum though it keeps the size; the others' is a mean.
_MAXIMUM = "5b"


class Unit(nn.Module):
    """Convolution, batch norm, ReLU. The convolution has no bias: the batch norm would take it away again."""

    def __init__(self, channels: int, outputs: int, *, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map `[K, channels, H, W]` to `[K, outputs, H / stride, W / stride]`, rounded up."""
        return F.relu(self.norm(self.conv(x)))


class Halving(nn.Module):
    """Maximum over 3x3, stride 2, without padding where H and W are even: `[K, C, H, W]` to half of each, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool what a ReLU gave, which no zero changes."""
        rows, columns = x.shape[2] % 2, x.shape[3] % 2
        # Behind an odd side one more zero, else a module's pooling would be smaller than its convolutions.
        x = F.pad(x, (0, columns, 0, rows)) if rows or columns else x
        return F.max_pool2d(x, 3, stride=2, ceil_mode=True)


class InceptionModule(nn.Module):
    """Up to four paths over one input, joined along the channels."""

    def __init__(self, channels: int, widths: Widths, *, maximum: bool = False) -> None:
        super().__init__()
        stride = 1 if widths.pool else 2
        paths: list[nn.Module] = [Unit(channels, widths.one)] if widths.one else []
        paths.append(nn.Sequential(Unit(channels, widths.three_reduce), Unit(widths.three_reduce, widths.three, kernel=3, stride=stride)))
        paths.append(
            nn.Sequential(
                Unit(channels, widths.double_reduce),
                Unit(widths.double_reduce, widths.double, kernel=3),
                Unit(widths.double, widths.double, kernel=3, stride=stride),
            )
        )
        if widths.pool:
            pooling = nn.MaxPool2d(3, stride=1, padding=1) if maximum else nn.AvgPool2d(3, stride=1, padding=1)
            paths.append(nn.Sequential(pooling, Unit(channels, widths.pool)))
        else:
            paths.append(Halving())
        self.paths = nn.ModuleList(paths)
        self.outputs = widths.one + widths.three + widths.double + (widths.pool or channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[K, channels, H, W]` to `[K, outputs, H, W]`, or to half of H and W, rounded up."""
        return torch.cat([path(x) for path in self.paths], dim=1)


class InceptionStages(nn.Module):
    """BN-Inception behind its first convolution: four stages, which end at pool2, 3c, 4e and 5b.

    Attributes:
        stages: The four, each a module of its own, so that something can be done between them.
        num_features: Channels behind the last, 1024 at width 1.

    Args:
        width: Factor on the channels.
        blocks: Inception modules of each stage behind the first, the last ones (3c and 4e halve the picture); 0 is all.
    """

    def __init__(self, *, width: float = 1.0, blocks: int = 0) -> None:
        super().__init__()

        def scaled(count: int) -> int:
            return max(8, round(width * count)) if count else 0

        channels = scaled(192)
        first = nn.Sequential(Halving(), Unit(STEM, scaled(64)), Unit(scaled(64), channels, kernel=3), Halving())
        stages: list[nn.Module] = [first]
        for stage in "345":
            modules = []
            for name in [name for name in MODULES if name.startswith(stage)][-blocks:]:
                modules.append(InceptionModule(channels, Widths(*(scaled(count) for count in MODULES[name])), maximum=name == _MAXIMUM))
                channels = modules[-1].outputs
            stages.append(nn.Sequential(*modules))
        self.stages = nn.ModuleList(stages)
        self.num_features = channels

    def forward(self, x: Tensor) -> Tensor:
        """Map the first convolution's `[K, 64, H, W]` to vectors `[K, num_features]`."""
        for stage in self.stages:
            x = stage(x)
        return x.mean((2, 3))


class BNInception(nn.Module):
    """The whole network: images `[K, channels, H, W]` to vectors `[K, num_features]`.

    10.3 M parameters and 2.03 GMAC for an image of 3 x 224 x 224, without a classifier.

    Args:
        channels: Channels of the input.
        width: Factor on the channels of all layers but the first.
        stride: Of the first convolution; 1 for inputs that are halved already.
        blocks: See `InceptionStages`.
    """

    def __init__(self, *, channels: int = 3, width: float = 1.0, stride: int = 2, blocks: int = 0) -> None:
        super().__init__()
        self.conv1 = Unit(channels, STEM, kernel=7, stride=stride)
        self.body = InceptionStages(width=width, blocks=blocks)
        self.num_features = self.body.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[K, channels, H, W]` to vectors `[K, num_features]`."""
        return self.body(self.conv1(x))

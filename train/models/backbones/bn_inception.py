"""BN-Inception, the image network that the disentangling recogniser is built on.

Ioffe and Szegedy, Batch Normalization, 2015, Figure 5; the variant of Temporal Segment Networks (Wang et al., ECCV 2016).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels of the first convolution, also in a narrower network, as in ResNets (see `timm_backbones.resnet`).
STEM = 64


class Widths(NamedTuple):
    """One row of the published table: the output channels of an inception module's layers, 0 for an absent layer."""

    one: int
    """1x1."""
    three_reduce: int
    """1x1 before the 3x3."""
    three: int
    """3x3."""
    double_reduce: int
    """1x1 before the two 3x3 in the place of a 5x5."""
    double: int
    """Each of those two 3x3."""
    pool: int
    """1x1 after the pooling; 0: the pooled input itself is the output, and the module halves rows and columns."""


#: Figure 5 of the paper. Its column "output size" has 576 for 4c and 4d and 1024 for 4e, but the layers in the same rows add up to
#: 608, 608 and 1056; the published networks, TSN's among them, are built as the layers say.
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
#: The module with max pooling of stride 1; the other modules of stride 1 have average pooling.
_MAX_POOL = "5b"


class Unit(nn.Module):
    """Convolution, batch norm, ReLU. The convolution has no bias, which the batch norm would cancel."""

    def __init__(self, channels: int, outputs: int, *, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map `[K, channels, H, W]` to `[K, outputs, H / stride, W / stride]`, rounded up."""
        return F.relu(self.norm(self.conv(x)))


class Halving(nn.Module):
    """3x3 max pooling with stride 2 that halves H and W, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool the output of a ReLU, `[K, C, H, W]`; zeros as padding do not change its maxima."""
        rows, columns = x.shape[2] % 2, x.shape[3] % 2
        # An odd side is padded by one, so that the output is as large as that of the convolutions beside it.
        x = F.pad(x, (0, columns, 0, rows)) if rows or columns else x
        return F.max_pool2d(x, 3, stride=2, ceil_mode=True)


class InceptionModule(nn.Module):
    """Up to four paths over one input, concatenated along the channels."""

    def __init__(self, channels: int, widths: Widths, *, max_pool: bool = False) -> None:
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
            pooling = nn.MaxPool2d(3, stride=1, padding=1) if max_pool else nn.AvgPool2d(3, stride=1, padding=1)
            paths.append(nn.Sequential(pooling, Unit(channels, widths.pool)))
        else:
            paths.append(Halving())
        self.paths = nn.ModuleList(paths)
        self.outputs = widths.one + widths.three + widths.double + (widths.pool or channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[K, channels, H, W]` to `[K, outputs, H, W]`, or to half of H and W, rounded up."""
        return torch.cat([path(x) for path in self.paths], dim=1)


class InceptionStages(nn.Module):
    """BN-Inception after its first convolution: four stages, which end at pool2, 3c, 4e and 5b.

    Attributes:
        stages: The four stages as separate modules, so that frames can be pooled between them.
        num_features: Channels of the last stage, 1024 at width 1.

    Args:
        width: Factor on the channels.
        blocks: Number of inception modules in each stage after the first, taken from its end (3c and 4e halve the image); 0 is all.
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
                modules.append(InceptionModule(channels, Widths(*(scaled(count) for count in MODULES[name])), max_pool=name == _MAX_POOL))
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
        stride: Stride of the first convolution; 1 for inputs of half the image's size.
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

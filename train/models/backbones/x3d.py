"""X3D: a small 3D network of channel-wise convolutions.

Feichtenhofer, X3D: Expanding Architectures for Efficient Video Recognition, CVPR 2020. XS and M are the same network, with 3.0 M
parameters before the classifier; they differ in their clips, 4 frames of 160 x 160 and 16 of 224 x 224.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

#: Blocks and channels of the four stages (X3D paper, Table 3).
DEPTHS = (3, 5, 11, 7)
CHANNELS = (24, 48, 96, 192)
#: Channels inside a block, as a multiple of those outside.
EXPANSION = 2.25
#: Channels before the pooling, and features after it.
LAST_CHANNELS, FEATURES = 432, 2048


class ChannelwiseConv(nn.Conv3d):
    """A channel-wise (depthwise) 3D convolution."""

    #: A seventh of the operations; INT8 kernels need multiples of 8 channels, and it has 54 and 108.
    unquantised = True


class Stem(nn.Sequential):
    """The first layers, from RGB to the first stage's input."""

    #: There is no INT8 kernel for 3D convolutions of three channels.
    unquantised = True


class X3D(nn.Module):
    """An X3D without its classifier.

    Args:
        width: Factor on all channels and features.
        blocks: Blocks per stage; 0 takes `DEPTHS`.
        inputs: Channels of each segment's image.

    Attributes:
        num_features: Length of a clip's vector, 2,048 at width 1.
    """

    #: It takes all segments of a clip together (see `Network`).
    whole_clips = True

    def __init__(self, *, width: float = 1.0, blocks: int = 0, inputs: int = 3) -> None:
        super().__init__()
        channels = [max(8, round(width * count)) for count in CHANNELS]
        last, self.num_features = max(8, round(width * LAST_CHANNELS)), max(8, round(width * FEATURES))
        self.stem = Stem(
            nn.Conv3d(inputs, channels[0], (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False),
            ChannelwiseConv(channels[0], channels[0], (5, 1, 1), padding=(2, 0, 0), groups=channels[0], bias=False),
            nn.BatchNorm3d(channels[0]),
            nn.ReLU(inplace=True),
        )
        layers: list[Block] = []
        before = channels[0]
        for depth, count in zip(DEPTHS, channels, strict=True):
            for index in range(blocks or depth):
                layers.append(Block(before, count, stride=1 if index else 2, squeeze=index % 2 == 0))
                before = count
        self.blocks = nn.Sequential(*layers)
        self.last = nn.Sequential(nn.Conv3d(before, last, 1, bias=False), nn.BatchNorm3d(last), nn.ReLU(inplace=True))
        self.project = nn.Linear(last, self.num_features, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, Block):
                # A new block starts as the identity.
                nn.init.zeros_(module.restore_norm.weight)
        nn.init.normal_(self.project.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Encode the frames of a clip together: `[B, N, inputs, H, W]` to one vector, `[B, 1, num_features]`."""
        x = self.last(self.blocks(self.stem(x.transpose(1, 2))))
        return F.relu(self.project(x.mean((2, 3, 4))))[:, None]


class Block(nn.Module):
    """A residual block: a 1x1x1 convolution expands the channels, a channel-wise 3x3x3 convolution follows, and a 1x1x1 reduces them.

    Args:
        before: Channels of its input.
        after: Channels of its output.
        stride: Spatial stride of its 3x3x3 convolution; the temporal stride is always 1.
        squeeze: Whether it has squeeze-and-excitation.
    """

    def __init__(self, before: int, after: int, *, stride: int, squeeze: bool) -> None:
        super().__init__()
        inner = int(EXPANSION * after)
        self.expand = nn.Conv3d(before, inner, 1, bias=False)
        self.expand_norm = nn.BatchNorm3d(inner)
        self.mix = ChannelwiseConv(inner, inner, 3, stride=(1, stride, stride), padding=1, groups=inner, bias=False)
        self.mix_norm = nn.BatchNorm3d(inner)
        self.squeeze = Squeeze(inner) if squeeze else nn.Identity()
        self.restore = nn.Conv3d(inner, after, 1, bias=False)
        self.restore_norm = nn.BatchNorm3d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv3d(before, after, 1, stride=(1, stride, stride), bias=False), nn.BatchNorm3d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, before, N, H, W]` to `[B, after, N, H / stride, W / stride]`."""
        y = F.relu(self.expand_norm(self.expand(x)))
        y = F.silu(self.squeeze(self.mix_norm(self.mix(y))))
        return F.relu(self.shortcut(x) + self.restore_norm(self.restore(y)))


class Squeeze(nn.Module):
    """Squeeze-and-excitation with a sixteenth of the channels, rounded to a multiple of eight."""

    #: One value per channel and clip: INT8 gains nothing.
    unquantised = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = _rounded(channels / 16)
        self.reduce = nn.Conv3d(channels, inner, 1)
        self.excite = nn.Conv3d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `[B, C, N, H, W]`."""
        return x * self.excite(F.relu(self.reduce(x.mean((2, 3, 4), keepdim=True)))).sigmoid()


def _rounded(count: float) -> int:
    """Round to the nearest multiple of 8, at least 8, and never down by more than a tenth."""
    nearest = max(8, int(count + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * count else nearest

"""The STM block, a residual block with spatiotemporal (CSTM) and motion (CMM) modules in the place of its 3x3 convolution.

Wang et al., Learning SpatioTemporal and Motion Features in a Unified 2D Network for Action Recognition (which extends Jiang et
al., STM, ICCV 2019). Decisions that the paper leaves open:

- In a bottleneck, as in Fig. 3, CSTM and CMM replace the 3x3 convolution between the two 1x1 ones. A basic block (ResNet-18, -34) has no
  1x1 convolutions; there they replace the second 3x3, which also comes after a convolution.
- The modules have no batch norm inside. All their steps are linear, as in Eq. 1 and 2, and the block's own batch norm and ReLU follow
  their sum.
- Where the block's 3x3 has a stride, as in timm's ResNets, the last convolution of each module has it: both mix time at full size.
- Initial weights: CSTM is TSM's shift, and CMM's 3x3 is the identity, so that CMM starts as the plain difference. With ImageNet weights
  CMM's last 1x1 starts at zero: the network starts as the one that was pretrained, and its first training step changes CMM.
- In a narrow network CMM has at least four channels, as many as in the paper's narrowest stage.
- CMM without CSTM (Table 6) keeps the residual block's 3x3 convolution: without it there would be 12.7 M parameters, not 23.95 M
  (Table 10). Ordinary convolutions (Table 10) start as the channel-wise ones do, with those kernels on the diagonal. CSTM's channel-wise
  3x3 is initialised randomly even with ImageNet weights, since it cannot take over an ordinary kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowless.train.models.layers.temporal_shift import from_next, from_previous, zero_last
from flowless.train.models.options import STMOptions

#: Factor r by which CMM's first convolution reduces the channels (section 4.2).
REDUCTION = 16
#: Fewest channels inside CMM.
LEAST_CHANNELS = 4


class ChannelwiseTemporalConv(nn.Module):
    """CSTM's first half (Eq. 1): a channel-wise convolution over three segments, the previous one, this one and the next.

    Args:
        channels: C.
        segments: N; the first and the last segment are padded with zeros.
        fixed: Use the constant frequency-degenerated kernel [0, 1, 1] (section 5.3), F_t + F_t+1.

    Attributes:
        weight: `[3, C]`, the weights of the previous segment, this one and the next; None if they are fixed.
    """

    #: A sum of three signed terms per channel; INT8 would round each before the sum.
    unquantised = True

    def __init__(self, channels: int, *, segments: int, fixed: bool = False) -> None:
        super().__init__()
        self.segments = segments
        if fixed:
            self.register_parameter("weight", None)
            return
        self.weight = nn.Parameter(_shift_kernels(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Mix `[B * N, C, H, W]` over the segments; the shape stays."""
        following = from_next(x, segments=self.segments)
        if self.weight is None:
            return x + following
        # The cast keeps mixed precision's half-precision type, which a float32 weight would promote.
        before, now, after = self.weight.to(x.dtype)[:, :, None, None]
        return before * from_previous(x, segments=self.segments) + now * x + after * following


class OrdinaryTemporalConv(nn.Module):
    """CSTM's first half as an ordinary convolution over three segments, which mixes channels (Table 10).

    Args:
        channels: C.
        segments: N; the first and the last segment are padded with zeros.

    Attributes:
        mix: A 1x1 convolution with weight `[C, 3C, 1, 1]`, over the previous segment's channels, this one's and the next one's.
    """

    def __init__(self, channels: int, *, segments: int) -> None:
        super().__init__()
        self.segments = segments
        self.mix = nn.Conv2d(3 * channels, channels, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.cat([torch.diag(row) for row in _shift_kernels(channels)], dim=1)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Mix `[B * N, C, H, W]` over the segments and channels; the shape stays."""
        return self.mix(torch.cat([from_previous(x, segments=self.segments), x, from_next(x, segments=self.segments)], dim=1))


def _shift_kernels(channels: int) -> Tensor:
    """Return TSM's shift as channel-wise kernels `[3, C]`: an eighth of the channels takes the next segment, an eighth the previous."""
    weight, fold = torch.zeros(3, channels), channels // 8
    weight[2, :fold] = weight[0, fold : 2 * fold] = weight[1, 2 * fold :] = 1
    return weight


class ChannelwiseMotion(nn.Module):
    """CMM (Eq. 2): the difference of each segment's features from the next segment's, after channel-wise 3x3 kernels on the latter.

    Args:
        channels: C.
        out_channels: Output channels; the paper's C.
        segments: N; the last segment has no next one, so its motion is zero.
        stride: Stride of the block's 3x3 convolution.
        options: The type of the 3x3 kernels (Table 10), or that they are the identity (section 5.3), F_t - F_t+1, without parameters.
        without_motion: Start with an output of zero, so that a pretrained network starts unchanged.
    """

    #: Few channels, fewer than an INT8 kernel processes at once, and differences that are small against the features.
    unquantised = True

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        segments: int,
        stride: int,
        options: STMOptions | None = None,
        without_motion: bool = False,
    ) -> None:
        super().__init__()
        options = options or STMOptions()
        self.segments = segments
        inner = max(LEAST_CHANNELS, channels // REDUCTION)
        groups = inner if options.stm_motion == "channel-wise" else 1
        self.reduce = nn.Conv2d(channels, inner, 1, bias=False)
        self.move = None if options.stm_fixed else nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False)
        self.restore = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.stride = stride
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(self.restore.weight, nonlinearity="relu")
        if self.move is not None:
            nn.init.zeros_(self.move.weight)
            with torch.no_grad():
                self.move.weight[:, :, 1, 1] = torch.eye(inner) if groups == 1 else 1
        if without_motion:
            nn.init.zeros_(self.restore.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B * N, C, H, W]` to its motion, `[B * N, out_channels, H / stride, W / stride]`."""
        now = self.reduce(x)
        moved = now if self.move is None else self.move(now)
        change = zero_last(now - from_next(moved, segments=self.segments), segments=self.segments)
        # Sliced, instead of a strided 1x1 convolution: with fewer than 8 channels in channels-last layout, PyTorch's backward pass of that
        # writes out of bounds on processors without AVX-512 (seen in 2.13: the heap is corrupted).
        return self.restore(change if self.stride == 1 else change[:, :, :: self.stride, :: self.stride])


class SpatioTemporalMotion(nn.Module):
    """CSTM and CMM side by side, or one of them, in the place of a residual block's 3x3 convolution (Fig. 3).

    Args:
        conv: The 3x3 convolution; it becomes CSTM's second half.
        segments: N.
        options: Which modules (Table 6), their types of convolution (Table 10), how they are joined (section 5.2; after a concatenation
            follows a 1x1 convolution that starts as the sum), and whether they are frequency-degenerated (section 5.3).
        without_motion: Start without motion; see `ChannelwiseMotion`.

    Attributes:
        temporal: CSTM's first half; None without CSTM.
        spatial: The 3x3 convolution.
        motion: CMM; None without CMM.
    """

    def __init__(self, conv: nn.Conv2d, *, segments: int, options: STMOptions, without_motion: bool = False) -> None:
        super().__init__()
        channels, out, stride = conv.in_channels, conv.out_channels, conv.stride[0]
        self.temporal = self.motion = self.join = None
        if options.stm_modules != "cmm":
            self.temporal = (
                OrdinaryTemporalConv(channels, segments=segments)
                if options.stm_temporal == "ordinary"
                else ChannelwiseTemporalConv(channels, segments=segments, fixed=options.stm_fixed)
            )
        self.spatial = conv if options.stm_spatial == "ordinary" else _channelwise(conv)
        if options.stm_modules != "cstm":
            self.motion = ChannelwiseMotion(channels, out, segments=segments, stride=stride, options=options, without_motion=without_motion)
        if options.stm_fusion == "concat":
            self.join = nn.Conv2d(2 * out, out, 1, bias=False)
            with torch.no_grad():
                self.join.weight.copy_(torch.eye(out).repeat(1, 2)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B * N, C, H, W]` to `[B * N, out, H / stride, W / stride]`."""
        appearance = self.spatial(x if self.temporal is None else self.temporal(x))
        if self.motion is None:
            return appearance
        motion = self.motion(x)
        return appearance + motion if self.join is None else self.join(torch.cat([appearance, motion], dim=1))


def _channelwise(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a channel-wise 3x3 convolution in the place of an ordinary one."""
    # In basic and bottleneck blocks, conv2 has equally many input and output channels.
    channelwise = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=conv.stride[0], padding=1, groups=conv.in_channels, bias=False)
    nn.init.kaiming_normal_(channelwise.weight, nonlinearity="relu")
    return channelwise


def add_stm_blocks(backbone: nn.Module, *, segments: int, options: STMOptions, without_motion: bool = False) -> int:
    """Turn residual blocks of a timm ResNet into STM blocks, by replacing `conv2` with `SpatioTemporalMotion`.

    Returns:
        The number of STM blocks.
    """
    placement, count = options.stm_placement, 0
    # The paper's stage 2 is conv2_x, timm's layer1.
    for number, layer in enumerate(("layer1", "layer2", "layer3", "layer4"), start=2):
        if placement not in {"all", "one-per-stage", f"stage{number}"}:
            continue
        blocks = list(backbone.get_submodule(layer).children())
        for block in blocks if placement == "all" else blocks[:1]:
            conv = block.get_submodule("conv2")
            assert isinstance(conv, nn.Conv2d)
            block.conv2 = SpatioTemporalMotion(conv, segments=segments, options=options, without_motion=without_motion)
            count += 1
    return count

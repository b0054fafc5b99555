"""STM: spatiotemporal and motion features in one 2D network, by a block that takes the place of the residual block.

Wang et al., Learning SpatioTemporal and Motion Features in a Unified 2D Network for Action Recognition (which extends Jiang et
al., STM, ICCV 2019). What the paper leaves open, and what is done here:

- A bottleneck's two 1x1 convolutions are Fig. 3's; CSTM and CMM stand in the place of the 3x3 one between. A basic block
  (ResNet-18, -34) has no 1x1 convolutions: they stand in the place of its second 3x3, behind a convolution as in the bottleneck.
- Batch norm: none inside the modules. Every step of theirs is linear, as in Eq. 1 and 2, and the block's own batch norm and ReLU
  follow their sum, so that the sum is what is normalised.
- Where the block strides (as timm's do, in the 3x3), the last convolution of each module strides: both mix time at full size.
- First weights. CSTM starts as TSM's shift and CMM's 3x3 as a point, so that what starts is the plain difference. From ImageNet
  weights CMM's last 1x1 starts at zero: the network begins as the one that the weights were made for, and its first step moves CMM.
- Of a narrow network, CMM keeps at least the four channels that it has in the paper's narrowest stage.
- CMM alone (Table 6) stands beside the residual block's 3x3 convolution, without which 12.7 M parameters were left, not 23.95 M
  (Table 10). Ordinary convolutions (Table 10) start as the channel-wise ones do, on their diagonal; CSTM's channel-wise 3x3 starts anew,
  also beside ImageNet weights: of the ordinary one it has too little.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowless.train.models.layers.shift import earlier, later, without_last
from flowless.train.models.options import STMOptions
from flowless.train.models.plan import Plan
from flowless.train.models.recognizer import Network
from flowless.train.models.tsn import tsn

#: By how much CMM's first convolution reduces the channels, r (section 4.2).
REDUCTION = 16
#: Fewest channels that CMM works on.
LEAST_CHANNELS = 4


class ChannelwiseTemporalConv(nn.Module):
    """CSTM's first half (Eq. 1): each channel mixes with itself, one segment back and one on, by three weights of its own.

    Args:
        channels: C.
        segments: N; zeros lie before the first segment and after the last.
        fixed: The frequency-degenerated kernel [0, 1, 1] (section 5.3), F_t + F_t+1: nothing to learn.

    Attributes:
        weight: `[3, C]`, the weights of the previous segment, this one and the next; None where they are fixed.
    """

    #: Sums of three numbers with signs, channel by channel: in INT8 each would be rounded before they meet.
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
        on = later(x, segments=self.segments)
        if self.weight is None:
            return x + on
        # The cast keeps mixed precision's narrow type, which a weight in float32 would widen.
        before, now, after = self.weight.to(x.dtype)[:, :, None, None]
        return before * earlier(x, segments=self.segments) + now * x + after * on


class OrdinaryTemporalConv(nn.Module):
    """CSTM's first half as an ordinary convolution over three segments, each of which gives all channels (Table 10).

    Args:
        channels: C.
        segments: N; zeros lie before the first segment and after the last.

    Attributes:
        mix: `[C, 3C, 1, 1]`: the previous segment's channels, this one's and the next one's side by side.
    """

    def __init__(self, channels: int, *, segments: int) -> None:
        super().__init__()
        self.segments = segments
        self.mix = nn.Conv2d(3 * channels, channels, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.cat([torch.diag(row) for row in _shift_kernels(channels)], dim=1)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Mix `[B * N, C, H, W]` over the segments and channels; the shape stays."""
        return self.mix(torch.cat([earlier(x, segments=self.segments), x, later(x, segments=self.segments)], dim=1))


def _shift_kernels(channels: int) -> Tensor:
    """Return the kernels of TSM's shift, `[3, C]`: an eighth takes the next segment, an eighth the previous one."""
    weight, fold = torch.zeros(3, channels), channels // 8
    weight[2, :fold] = weight[0, fold : 2 * fold] = weight[1, 2 * fold :] = 1
    return weight


class ChannelwiseMotion(nn.Module):
    """CMM (Eq. 2): how each segment's features differ from the next one's, which channel-wise 3x3 kernels move first.

    Args:
        channels: C.
        out_channels: Channels that come out; the paper's C.
        segments: N; the last segment has no next one, its motion is zero.
        stride: Of the convolution that stands beside.
        options: The type of the 3x3 kernels (Table 10), or that they are 1 in their middle (section 5.3), F_t - F_t+1: nothing to learn.
        silent: Start with no motion at all, so that pretrained weights mean what they meant.
    """

    #: Differences of few channels: fewer than an INT8 kernel takes at once, and small beside what they are differences of.
    unquantised = True

    def __init__(
        self, channels: int, out_channels: int, *, segments: int, stride: int, options: STMOptions | None = None, silent: bool = False
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
        if silent:
            nn.init.zeros_(self.restore.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B * N, C, H, W]` to its motion, `[B * N, out_channels, H / stride, W / stride]`."""
        now = self.reduce(x)
        moved = now if self.move is None else self.move(now)
        change = without_last(now - later(moved, segments=self.segments), segments=self.segments)
        # Instead of a stride of the 1x1 convolution: with fewer than 8 channels, laid out last, PyTorch's gradient of that writes
        # beyond its memory on processors without AVX-512 (seen in 2.13: the heap is corrupted).
        return self.restore(change if self.stride == 1 else change[:, :, :: self.stride, :: self.stride])


class SpatioTemporalMotion(nn.Module):
    """CSTM and CMM side by side, or one of them, in an STM block where the residual block has a 3x3 convolution (Fig. 3).

    Args:
        conv: The 3x3 convolution; it becomes CSTM's second half.
        segments: N.
        options: Which modules (Table 6), their types of convolution (Table 10), how they are joined (section 5.2: concatenated, a 1x1
            convolution follows that starts as the sum) and whether they are the frequency-degenerated ones (section 5.3).
        silent: Start without motion; see `ChannelwiseMotion`.

    Attributes:
        temporal: CSTM's first half; None where CMM stands alone.
        spatial: The 3x3 convolution.
        motion: CMM; None where CSTM stands alone.
    """

    def __init__(self, conv: nn.Conv2d, *, segments: int, options: STMOptions, silent: bool = False) -> None:
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
            self.motion = ChannelwiseMotion(channels, out, segments=segments, stride=stride, options=options, silent=silent)
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
    """Return a 3x3 convolution of each channel by itself in the place of an ordinary one."""
    # Both of a residual network's blocks keep the channels here.
    made = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=conv.stride[0], padding=1, groups=conv.in_channels, bias=False)
    nn.init.kaiming_normal_(made.weight, nonlinearity="relu")
    return made


def add_stm_blocks(backbone: nn.Module, *, segments: int, options: STMOptions, silent: bool = False) -> int:
    """Turn residual blocks of a timm ResNet into STM blocks: what was `conv2` is `SpatioTemporalMotion`.

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
            block.conv2 = SpatioTemporalMotion(conv, segments=segments, options=options, silent=silent)
            count += 1
    return count


def stm(plan: Plan) -> Network:
    """STM: a ResNet whose residual blocks also mix each channel over the segments and see what moves between them.

    Model card:
        Paper: sections 3.1, 3.2 and 3.4, Fig. 3, Table 4.
        Sees: the first frame of each segment; order and motion inside every block.
        Size: ResNet-50, 174 classes: 24.0 M parameters, 33.0 GMAC for 8 frames of 224 x 224 (the paper: 24.0 M, 33.3 G).
        Variants: which modules (Table 6), sum or concatenation (Table 7), frequency degeneration (Table 8), which blocks (Table 9),
            types of convolution (Table 10).
    """
    model = tsn(plan)
    add_stm_blocks(model.backbone, segments=plan.spec.segments, options=plan.asked(STMOptions), silent=plan.from_pretrained)
    return model

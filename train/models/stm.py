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
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowless.train.models.options import STMFusion, STMOptions, STMPlacement
from flowless.train.models.plan import Plan
from flowless.train.models.recognizer import Network
from flowless.train.models.shift import earlier, later, without_last
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
        weight, fold = torch.zeros(3, channels), channels // 8
        weight[2, :fold] = weight[0, fold : 2 * fold] = weight[1, 2 * fold :] = 1
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Mix `[B * N, C, H, W]` over the segments; the shape stays."""
        on = later(x, segments=self.segments)
        if self.weight is None:
            return x + on
        # The cast keeps mixed precision's narrow type, which a weight in float32 would widen.
        before, now, after = self.weight.to(x.dtype)[:, :, None, None]
        return before * earlier(x, segments=self.segments) + now * x + after * on


class ChannelwiseMotion(nn.Module):
    """CMM (Eq. 2): how each segment's features differ from the next one's, which channel-wise 3x3 kernels move first.

    Args:
        channels: C.
        out_channels: Channels that come out; the paper's C.
        segments: N; the last segment has no next one, its motion is zero.
        stride: Of the convolution that stands beside.
        fixed: Kernels that are 1 in their middle (section 5.3), F_t - F_t+1: nothing to learn in `move`.
        silent: Start with no motion at all, so that pretrained weights mean what they meant.
    """

    #: Differences of few channels: fewer than an INT8 kernel takes at once, and small beside what they are differences of.
    unquantised = True

    def __init__(self, channels: int, out_channels: int, *, segments: int, stride: int, fixed: bool = False, silent: bool = False) -> None:
        super().__init__()
        self.segments = segments
        inner = max(LEAST_CHANNELS, channels // REDUCTION)
        self.reduce = nn.Conv2d(channels, inner, 1, bias=False)
        self.move = None if fixed else nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.restore = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.stride = stride
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(self.restore.weight, nonlinearity="relu")
        if self.move is not None:
            nn.init.zeros_(self.move.weight)
            nn.init.ones_(self.move.weight[:, :, 1, 1])
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
    """CSTM and CMM side by side, in an STM block where the residual block has a 3x3 convolution (Fig. 3).

    Args:
        conv: The 3x3 convolution; it becomes CSTM's second half.
        segments: N.
        fusion: `sum`, or `concat` with a 1x1 convolution behind (section 5.2: 7.4 points worse), which starts as the sum.
        fixed: The frequency-degenerated variant (section 5.3).
        silent: Start without motion; see `ChannelwiseMotion`.
    """

    def __init__(self, conv: nn.Conv2d, *, segments: int, fusion: STMFusion = "sum", fixed: bool = False, silent: bool = False) -> None:
        super().__init__()
        channels, out, stride = conv.in_channels, conv.out_channels, conv.stride[0]
        self.temporal = ChannelwiseTemporalConv(channels, segments=segments, fixed=fixed)
        self.spatial = conv
        self.motion = ChannelwiseMotion(channels, out, segments=segments, stride=stride, fixed=fixed, silent=silent)
        self.join = nn.Conv2d(2 * out, out, 1, bias=False) if fusion == "concat" else None
        if self.join is not None:
            with torch.no_grad():
                self.join.weight.copy_(torch.eye(out).repeat(1, 2)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B * N, C, H, W]` to `[B * N, out, H / stride, W / stride]`."""
        appearance, motion = self.spatial(self.temporal(x)), self.motion(x)
        return appearance + motion if self.join is None else self.join(torch.cat([appearance, motion], dim=1))


def add_stm_blocks(
    backbone: nn.Module,
    *,
    segments: int,
    placement: STMPlacement = "all",
    fusion: STMFusion = "sum",
    fixed: bool = False,
    silent: bool = False,
) -> int:
    """Turn residual blocks of a timm ResNet into STM blocks: what was `conv2` is `SpatioTemporalMotion`.

    Returns:
        The number of STM blocks.
    """
    count = 0
    # The paper's stage 2 is conv2_x, timm's layer1.
    for number, layer in enumerate(("layer1", "layer2", "layer3", "layer4"), start=2):
        if placement not in {"all", "one-per-stage", f"stage{number}"}:
            continue
        blocks = list(backbone.get_submodule(layer).children())
        for block in blocks if placement == "all" else blocks[:1]:
            conv = block.get_submodule("conv2")
            assert isinstance(conv, nn.Conv2d)
            block.conv2 = SpatioTemporalMotion(conv, segments=segments, fusion=fusion, fixed=fixed, silent=silent)
            count += 1
    return count


def stm(plan: Plan) -> Network:
    """STM: a ResNet whose residual blocks also mix each channel over the segments and see what moves between them.

    Model card:
        Paper: sections 3.1, 3.2 and 3.4, Fig. 3, Table 4.
        Sees: the first frame of each segment; order and motion inside every block.
        Size: ResNet-50, 174 classes: 24.0 M parameters, 33.0 GMAC for 8 frames of 224 x 224 (the paper: 24.0 M, 33.3 G).
        Variants: which blocks (Table 9), sum or concatenation (Table 7), frequency degeneration (Table 8).
    """
    model, options = tsn(plan), plan.asked(STMOptions)
    add_stm_blocks(
        model.backbone,
        segments=plan.spec.segments,
        placement=options.stm_placement,
        fusion=options.stm_fusion,
        fixed=options.stm_fixed,
        silent=plan.from_pretrained,
    )
    return model

"""Disentangling: static appearance, apparent motion and appearance changes, three branches over one first layer.

Zhao, Xiong and Lin, Recognize Actions by Disentangling Components of Dynamics, CVPR 2018.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.bn_inception import STEM, BNInception, InceptionStages, Unit
from flowless.train.models.bn_inception_weights import published_network, widened_conv1
from flowless.train.models.displacement import Displacement, warped_differences
from flowless.train.models.options import AppearancePooling, DisentanglingOptions
from flowless.train.models.plan import Plan
from flowless.train.models.recognizer import Recognizer
from flowless.train.models.vap import AverageHead


def disentangling(plan: Plan) -> DisentanglingRecognizer:
    """Disentangled components of dynamics: appearance, displacement maps and warped differences, the mean of their scores.

    Model card:
        Paper: Zhao, Xiong and Lin, CVPR 2018. A snippet is a segment of 8 adjacent frames; several segments (TSN) or one.
        Sees: all m frames of each segment; order through the m - 1 displacement maps and warped differences between them.
        Size: BN-Inception, 101 classes: 31.3 M parameters, 54.2 GMAC for one segment of 8 frames of 224 x 224 (61.6 with
            displacement maps of 224 x 224), most of them in appearance changes (31.0). The paper gives neither number.
        Variant: motion and changes are a whole BN-Inception each, with a first convolution of 2 and of 64 channels, run on each
            pair of frames, and the pairs' vectors are averaged. The paper leaves this to a supplement that could not be had;
            its Table 9 fits it: motion takes 2.8 and changes 3.6 times the milliseconds of appearance, here they are 1.8
            and 4.0 times its operations, and one network over all seven maps at once would be 0.3 times. Late pooling in appearance
            (Table 1: 85.9 % of UCF101 beside 86.5 %) costs 8.5 GMAC more, since every frame goes through the whole network.
        Training: jointly, each branch by its own loss; from BN-Inception's ImageNet weights in a file (`pretrained_path`).
    """
    head = {"classes": plan.classes, "dropout": plan.dropout}
    options = plan.asked(DisentanglingOptions)
    stride = 1 if options.displacement_size == 224 else 2
    # Motion's and changes' first convolutions end at 112 x 112 as conv1 of an image does, whatever the size of the maps.
    size = {"width": plan.width, "blocks": plan.blocks}
    motion = BNInception(channels=2, stride=3 - stride, **size)
    changes = BNInception(channels=STEM, stride=3 - stride, **size)
    appearance = AppearanceNetwork(pooling=options.appearance_pooling, **size)
    low = SharedUnit(3, STEM, kernel=7, stride=stride)
    if plan.from_pretrained:
        _start_from_images(plan, low, appearance, motion, changes)
    return DisentanglingRecognizer(
        spec=plan.spec,
        low=low,
        displacement=Displacement(window=options.displacement_window, temperature=options.displacement_temperature),
        appearance=Branch(appearance, head=AverageHead(appearance.num_features, **head)),
        motion=Branch(motion, head=AverageHead(motion.num_features, **head)),
        changes=Branch(changes, head=AverageHead(changes.num_features, **head)),
    )


def _start_from_images(plan: Plan, low: Unit, appearance: AppearanceNetwork, motion: BNInception, changes: BNInception) -> None:
    """Give all branches the published weights of images (section 4.1, "cross-modality pre-training")."""
    if plan.pretrained_path is None:
        raise FlowlessError(
            f"{plan.name}: timm has no ImageNet weights of BN-Inception. Give a file of them with pretrained_path, or train from "
            f"scratch with pretrained off."
        )
    if plan.width != 1.0:
        raise FlowlessError(f"width is {plan.width}; pretrained weights exist for width 1 only. Train from scratch, or use width 1.")
    source = published_network(Path(plan.pretrained_path), spec=plan.spec)
    low.load_state_dict(source.conv1.state_dict())
    appearance.load_state_dict(source.body.state_dict())
    for network, channels in ((motion, 2), (changes, STEM)):
        network.body.load_state_dict(source.body.state_dict())
        network.conv1.load_state_dict(widened_conv1(source, channels))


class SharedUnit(Unit):
    """The first layer, which all branches share."""

    #: Displacement divides the differences of its features by a small temperature: in INT8 they would be the rounding's. It is a
    #: fiftieth of all operations.
    unquantised = True


class AppearanceNetwork(InceptionStages):
    """BN-Inception behind conv1 with 3D pooling (section 3.2): neighbouring frames are joined behind pool2, 3c and 4e.

    Args:
        width: Factor on the channels.
        pooling: `gradual` as above, or `late`: "one global temporal pooling after the network produces its final features"
            (section 4.2, Table 1), the maximum of the frames' vectors. The paper does not name the operation; all its others in
            time are maxima.
        blocks: See `InceptionStages`.
    """

    def __init__(self, *, width: float = 1.0, pooling: AppearancePooling = "gradual", blocks: int = 0) -> None:
        super().__init__(width=width, blocks=blocks)
        self.joined_behind = 3 if pooling == "gradual" else 0

    def encode(self, low: Tensor, *, frames: int) -> Tensor:
        """Map conv1's features `[K * frames, 64, H, W]`, a segment's frames adjacent, to one vector a segment `[K, D]`."""
        x = low
        for place, stage in enumerate(self.stages):
            x = stage(x)
            if place < self.joined_behind:
                x, frames = pooled_in_time(x, frames=frames)
        x = x.mean((2, 3))
        # 8 frames have become one. Of more, and of late pooling's, the strongest response is left to take.
        return x.unflatten(0, (-1, frames)).amax(1) if frames > 1 else x


def pooled_in_time(x: Tensor, *, frames: int) -> tuple[Tensor, int]:
    """Take the maximum over each two neighbouring frames: "the highest responses across neighboring frames" (section 3.2).

    Args:
        x: `[K * frames, C, H, W]`, a segment's frames adjacent.
        frames: Frames of a segment; where they are odd the last stays alone.

    Returns:
        `[K * ceil(frames / 2), C, H, W]`, and that number of frames.
    """
    if frames == 1:
        return x, 1
    if frames % 2:
        segments = x.unflatten(0, (-1, frames))
        x = torch.cat([segments, segments[:, -1:]], dim=1).flatten(0, 1)
    return torch.maximum(x[::2], x[1::2]), (frames + 1) // 2


class Branch(nn.Module):
    """One component's network and its head."""

    def __init__(self, network: AppearanceNetwork | BNInception, *, head: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.head = head


class DisentanglingRecognizer(Recognizer):
    """Three branches over the feature maps of one first convolution; the mean of their scores is the answer.

    Attributes:
        low: The shared first convolution, `[K, 3, H, W]` to 64 channels at half the size or, for displacement maps of
            224 x 224, at the full size.
        appearance, motion, changes: The branches.
    """

    def __init__(
        self, *, spec: ClipSpec, low: nn.Module, displacement: Displacement, appearance: Branch, motion: Branch, changes: Branch
    ) -> None:
        super().__init__(spec=spec)
        if spec.frames_per_segment < 2:
            raise FlowlessError(
                f"disentangling: frames_per_segment is {spec.frames_per_segment}; motion needs at least 2 frames (the paper: 8)."
            )
        self.low = low
        self.measure = displacement
        self.appearance = appearance
        self.motion = motion
        self.changes = changes

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The branches; the layer that they share goes with the first, whose pretrained network it belongs to."""
        return (nn.ModuleList([self.low, self.appearance]), self.motion, self.changes)

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """The branches' heads, in the order of `branch_scores`."""
        return tuple(branch.head for branch in (self.appearance, self.motion, self.changes))  # type: ignore[misc]

    def branch_scores(self, clip: Tensor) -> Tensor:
        """Return appearance's, motion's and changes' scores of pixels: uint8 `[B, N, m, H, W, 3]` to `[3, B, classes]`."""
        self._check(clip)
        # The cast comes first: TensorRT neither cuts nor transposes bytes.
        vectors = self._vectors(self.normalise(self.as_frames(clip)))
        return torch.stack([head(vector) for head, vector in zip(self.heads, vectors, strict=True)])

    def forward_frames(self, x: Tensor) -> Tensor:
        """Recognise normalised frames `[B, N, m, 3, H, W]`: scores `[B, classes]`."""
        return torch.stack([head(vector) for head, vector in zip(self.heads, self._vectors(x), strict=True)]).mean(0)

    def features(self, x: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]`: `[B, N, 3D]`, the branches' vectors one after another."""
        return torch.cat(self._vectors(x), dim=2)

    def displacement(self, clip: Tensor) -> Tensor:
        """Return the displacement maps of pixels, in cells: uint8 `[B, N, m, H, W, 3]` to `[B, N, m-1, 2, h, w]`."""
        self._check(clip)
        before, after = self._pairs(self.low(self.normalise(self.as_frames(clip)).flatten(0, 2)))
        return self.measure(before, after).unflatten(0, (-1, self.spec.segments, self.spec.frames_per_segment - 1))

    def _vectors(self, x: Tensor) -> list[Tensor]:
        """Encode normalised frames `[B, N, m, 3, H, W]`: each branch's `[B, N, D]`."""
        low = self.low(x.flatten(0, 2))
        before, after = self._pairs(low)
        displacement = self.measure(before, after)
        halved = low[:, :, ::2, ::2] if low.shape[2:] == x.shape[-2:] else low
        frames = self.spec.frames_per_segment
        assert isinstance(self.appearance.network, AppearanceNetwork)
        vectors = [
            # Every second cell of conv1 with stride 1 is conv1 with stride 2.
            self.appearance.network.encode(halved, frames=frames),
            self.motion.network(displacement.to(low.dtype)).unflatten(0, (-1, frames - 1)).mean(1),
            self.changes.network(warped_differences(before, after, displacement)).unflatten(0, (-1, frames - 1)).mean(1),
        ]
        return [vector.unflatten(0, (-1, self.spec.segments)) for vector in vectors]

    def _pairs(self, low: Tensor) -> tuple[Tensor, Tensor]:
        """Return each frame's features and the next one's: twice `[B * N * (m - 1), 64, h, w]`."""
        segments = low.unflatten(0, (-1, self.spec.frames_per_segment))
        return segments[:, :-1].flatten(0, 1), segments[:, 1:].flatten(0, 1)

"""Disentangling: static appearance, apparent motion and appearance changes, three branches over one first layer.

Zhao, Xiong and Lin, Recognize Actions by Disentangling Components of Dynamics, CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.backbones.bn_inception import STEM, BNInception, InceptionStages, Unit
from flowless.train.models.backbones.bn_inception_weights import published_network, widened_conv1
from flowless.train.models.layers.displacement import Displacement, resized_displacement, warped_differences
from flowless.train.models.layers.vap import AverageHead
from flowless.train.models.options import AppearancePooling, ChangesInput, DisentanglingOptions
from flowless.train.models.plan import Plan
from flowless.train.models.recognizer import Recognizer


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
        Ablations: single branches and pairs by `branches` (Tables 1, 2, 5, 6); what changes sees, by `changes_input` (Table 4), also
            pair by pair where TSN would stack the differences of frames. Warping by TV-L1 is not here: flowless computes no
            optical flow.
        Training: jointly, each branch by its own loss; from BN-Inception's ImageNet weights in a file (`pretrained_path`).
    """
    options = plan.asked(DisentanglingOptions)
    measured = measures_displacement(options)
    stride = 1 if measured and options.displacement_size == 224 else 2
    # Motion's and changes' first convolutions end at 112 x 112 as conv1 of an image does, whatever the size of the maps.
    size = {"width": plan.width, "blocks": plan.blocks}
    colours = options.changes_input in {"rgb", "warped-rgb"}
    made: dict[str, Callable[[], AppearanceNetwork | BNInception]] = {
        "motion": lambda: BNInception(channels=2, stride=3 - stride, **size),
        "changes": lambda: BNInception(channels=3 if colours else STEM, stride=2 if colours else 3 - stride, **size),
        "appearance": lambda: AppearanceNetwork(pooling=options.appearance_pooling, **size),
    }
    networks = {name: make() for name, make in made.items() if name in options.built}
    low = SharedUnit(3, STEM, kernel=7, stride=stride) if reads_features(options) else None
    if plan.from_pretrained:
        _start_from_images(plan, low, networks)
    heads = {name: AverageHead(networks[name].num_features, classes=plan.classes, dropout=plan.dropout) for name in options.built}
    return DisentanglingRecognizer(
        spec=plan.spec,
        low=low,
        displacement=Displacement(window=options.displacement_window, temperature=options.displacement_temperature) if measured else None,
        branches={name: Branch(networks[name], head=head) for name, head in heads.items()},
        changes_input=options.changes_input,
    )


def measures_displacement(options: DisentanglingOptions) -> bool:
    """Whether a model needs displacement maps: the motion branch sees them, and warping goes along them."""
    return "motion" in options.built or ("changes" in options.built and options.changes_input.startswith("warped"))


def reads_features(options: DisentanglingOptions) -> bool:
    """Whether a model needs the first layer: everything does but the plain differences of frames."""
    return measures_displacement(options) or "appearance" in options.built or options.changes_input == "features"


def _start_from_images(plan: Plan, low: Unit | None, networks: Mapping[str, AppearanceNetwork | BNInception]) -> None:
    """Give all branches the published weights of images (section 4.1, "cross-modality pre-training")."""
    if plan.pretrained_path is None:
        raise FlowlessError(
            f"{plan.name}: timm has no ImageNet weights of BN-Inception. Give a file of them with pretrained_path, or train from "
            f"scratch with pretrained off."
        )
    if plan.width != 1.0:
        raise FlowlessError(f"width is {plan.width}; pretrained weights exist for width 1 only. Train from scratch, or use width 1.")
    source = published_network(Path(plan.pretrained_path), spec=plan.spec)
    if low is not None:
        low.load_state_dict(source.conv1.state_dict())
    for network in networks.values():
        if isinstance(network, AppearanceNetwork):
            network.load_state_dict(source.body.state_dict())
            continue
        network.body.load_state_dict(source.body.state_dict())
        channels = network.conv1.conv.in_channels
        # A difference of frames has the colours of a frame.
        network.conv1.load_state_dict(source.conv1.state_dict() if channels == 3 else widened_conv1(source, channels))


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
    """Branches over the feature maps of one first convolution; the mean of their scores is the answer.

    Attributes:
        low: The shared first convolution, `[K, 3, H, W]` to 64 channels at half the size or, for displacement maps of
            224 x 224, at the full size; not there where no branch reads features.
        measure: What makes displacement maps; not there where nothing needs them.
        appearance, motion, changes: The branches, those that there are (`branches`).
    """

    low: nn.Module
    measure: Displacement
    appearance: Branch
    motion: Branch
    changes: Branch

    def __init__(
        self,
        *,
        spec: ClipSpec,
        low: nn.Module | None,
        displacement: Displacement | None,
        branches: Mapping[str, Branch],
        changes_input: ChangesInput = "warped-features",
    ) -> None:
        super().__init__(spec=spec)
        if spec.frames_per_segment < 2 and set(branches) != {"appearance"}:
            raise FlowlessError(
                f"disentangling: frames_per_segment is {spec.frames_per_segment}; motion and changes need at least 2 frames (the paper: 8)."
            )
        self.changes_input = changes_input
        self._names = tuple(branches)
        for name, module in {"low": low, "measure": displacement, **branches}.items():
            if module is not None:
                self.add_module(name, module)

    @property
    def branches(self) -> dict[str, Branch]:
        """Name -> branch, in the order of `branch_scores`: appearance, motion, changes, those that there are."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def has_displacement(self) -> bool:
        """Whether the model measures displacement."""
        return "measure" in self._modules

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The branches; the layer that they share goes with appearance, whose pretrained network it belongs to, or stands alone."""
        branches = self.branches
        if "low" not in self._modules:
            return tuple(branches.values())
        return (nn.ModuleList([self.low, *([branches.pop("appearance")] if "appearance" in branches else [])]), *branches.values())

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """The branches' heads, in the order of `branch_scores`."""
        return tuple(branch.head for branch in self.branches.values())

    def branch_scores(self, clip: Tensor) -> Tensor:
        """Return appearance's, motion's and changes' scores of pixels: uint8 `[B, N, m, H, W, 3]` to `[branches, B, classes]`."""
        self._check(clip)
        # The cast comes first: TensorRT neither cuts nor transposes bytes.
        vectors = self._vectors(self.normalise(self.as_frames(clip)))
        return torch.stack([head(vector) for head, vector in zip(self.heads, vectors, strict=True)])

    def forward_frames(self, x: Tensor) -> Tensor:
        """Recognise normalised frames `[B, N, m, 3, H, W]`: scores `[B, classes]`."""
        return torch.stack([head(vector) for head, vector in zip(self.heads, self._vectors(x), strict=True)]).mean(0)

    def features(self, x: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]`: `[B, N, branches * D]`, the branches' vectors one after another."""
        return torch.cat(self._vectors(x), dim=2)

    def displacement(self, clip: Tensor) -> Tensor:
        """Return the displacement maps of pixels, in cells: uint8 `[B, N, m, H, W, 3]` to `[B, N, m-1, 2, h, w]`.

        Raises:
            FlowlessError: The clip is not what the model takes, or no branch of the model needs displacement.
        """
        self._check(clip)
        if not self.has_displacement:
            raise FlowlessError(f"the model measures no displacement: its branches are {', '.join(self._names)}, of {self.changes_input}.")
        before, after = self._pairs(self.low(self.normalise(self.as_frames(clip)).flatten(0, 2)))
        return self.measure(before, after).unflatten(0, (-1, self.spec.segments, self.spec.frames_per_segment - 1))

    def _vectors(self, x: Tensor) -> list[Tensor]:
        """Encode normalised frames `[B, N, m, 3, H, W]`: each branch's `[B, N, D]`."""
        frames, colours = self.spec.frames_per_segment, x.flatten(0, 2)
        low = self.low(colours) if "low" in self._modules else colours
        displacement = self.measure(*self._pairs(low)) if self.has_displacement else None
        vectors = []
        for name, branch in self.branches.items():
            if name == "appearance":
                assert isinstance(branch.network, AppearanceNetwork)
                # Every second cell of conv1 with stride 1 is conv1 with stride 2.
                halved = low[:, :, ::2, ::2] if low.shape[2:] == x.shape[-2:] else low
                vectors.append(branch.network.encode(halved, frames=frames))
                continue
            seen = displacement if name == "motion" else self._changed(colours, low, displacement)
            assert seen is not None
            vectors.append(branch.network(seen.to(low.dtype)).unflatten(0, (-1, frames - 1)).mean(1))
        return [vector.unflatten(0, (-1, self.spec.segments)) for vector in vectors]

    def _changed(self, colours: Tensor, low: Tensor, displacement: Tensor | None) -> Tensor:
        """Return what the changes branch sees of each two neighbouring frames (Table 4): `[B * N * (m - 1), 64 or 3, h, w]`."""
        before, after = self._pairs(colours if self.changes_input in {"rgb", "warped-rgb"} else low)
        if self.changes_input in {"rgb", "features"}:
            return after - before
        assert displacement is not None
        return warped_differences(before, after, resized_displacement(displacement, before))

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each frame's features, or each frame, and the next one's: `[B * N * m, C, h, w]` to twice `[B * N * (m - 1), …]`."""
        segments = x.unflatten(0, (-1, self.spec.frames_per_segment))
        return segments[:, :-1].flatten(0, 1), segments[:, 1:].flatten(0, 1)

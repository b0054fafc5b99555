"""Disentangling: three branches over one shared first layer, for static appearance, apparent motion and appearance changes.

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
from flowless.train.models.layers.heads import AverageHead
from flowless.train.models.model_config import ModelConfig
from flowless.train.models.options import AppearancePooling, ChangesInput, DisentanglingOptions
from flowless.train.models.recognizer import Recognizer


def disentangling(config: ModelConfig) -> DisentanglingRecognizer:
    """Disentangled components of dynamics: branches for appearance, displacement maps and warped differences; their mean score.

    Model card:
        Paper: Zhao, Xiong and Lin, CVPR 2018. The paper's snippet is a segment of 8 adjacent frames; a clip has one segment, or several
            as in TSN.
        Sees: all m frames of each segment; order through the m - 1 displacement maps and warped differences between them.
        Size: BN-Inception, 101 classes: 31.3 M parameters, 54.2 GMAC for one segment of 8 frames of 224 x 224 (61.6 with
            displacement maps of 224 x 224), most of them in the changes branch (31.0). The paper gives neither number.
        Variant: the motion and changes branches are a whole BN-Inception each, with 2 and 64 input channels, run on each pair of
            frames; the pairs' vectors are averaged. The paper describes this in a supplement that was not available. Its Table 9
            agrees: motion takes 2.8 and changes 3.6 times the milliseconds of appearance; here they are 1.8 and 4.0 times its
            MACs, and one network over all seven maps together would be 0.3 times. Late pooling in appearance (Table 1: 85.9 % of
            UCF101, against 86.5 %) costs 8.5 GMAC more, since every frame goes through the whole network.
        Ablations: single branches and pairs by `branches` (Tables 1, 2, 5, 6); the input of changes by `changes_input` (Table 4), for
            each pair of frames separately, where TSN stacks the differences. Warping by TV-L1 is left out: flowless computes no
            optical flow.
        Training: jointly, each branch by its own loss; from BN-Inception's ImageNet weights in a file (`pretrained_path`).
    """
    options = config.options_as(DisentanglingOptions)
    measured = needs_displacement(options)
    stride = 1 if measured and options.displacement_size == 224 else 2
    # The first convolutions of motion and changes have outputs of 112 x 112, as conv1 of an image has, whatever the size of the maps.
    size = {"width": config.width, "blocks": config.blocks}
    rgb_changes = options.changes_input in {"rgb", "warped-rgb"}
    builders: dict[str, Callable[[], AppearanceNetwork | BNInception]] = {
        "motion": lambda: BNInception(channels=2, stride=3 - stride, **size),
        "changes": lambda: BNInception(channels=3 if rgb_changes else STEM, stride=2 if rgb_changes else 3 - stride, **size),
        "appearance": lambda: AppearanceNetwork(pooling=options.appearance_pooling, **size),
    }
    networks = {name: build() for name, build in builders.items() if name in options.built}
    low = SharedUnit(3, STEM, kernel=7, stride=stride) if needs_first_layer(options) else None
    if config.from_pretrained:
        _load_imagenet_weights(config, low, networks)
    heads = {name: AverageHead(networks[name].num_features, classes=config.classes, dropout=config.dropout) for name in options.built}
    return DisentanglingRecognizer(
        spec=config.spec,
        low=low,
        displacement=Displacement(window=options.displacement_window, temperature=options.displacement_temperature) if measured else None,
        branches={name: Branch(networks[name], head=head) for name, head in heads.items()},
        changes_input=options.changes_input,
    )


def needs_displacement(options: DisentanglingOptions) -> bool:
    """Return whether a model needs displacement maps, as input of the motion branch or for warping."""
    return "motion" in options.built or ("changes" in options.built and options.changes_input.startswith("warped"))


def needs_first_layer(options: DisentanglingOptions) -> bool:
    """Return whether a model needs the shared first layer: all do, except one that sees only differences of frames."""
    return needs_displacement(options) or "appearance" in options.built or options.changes_input == "features"


def _load_imagenet_weights(config: ModelConfig, low: Unit | None, networks: Mapping[str, AppearanceNetwork | BNInception]) -> None:
    """Load the published ImageNet weights into all branches (section 4.1, "cross-modality pre-training")."""
    if config.pretrained_path is None:
        raise FlowlessError(
            f"{config.name}: timm has no ImageNet weights of BN-Inception. Give a file of them with pretrained_path, or train from "
            f"scratch with pretrained off."
        )
    if config.width != 1.0:
        raise FlowlessError(f"width is {config.width}; pretrained weights exist for width 1 only. Train from scratch, or use width 1.")
    source = published_network(Path(config.pretrained_path), spec=config.spec)
    if low is not None:
        low.load_state_dict(source.conv1.state_dict())
    for network in networks.values():
        if isinstance(network, AppearanceNetwork):
            network.load_state_dict(source.body.state_dict())
            continue
        network.body.load_state_dict(source.body.state_dict())
        channels = network.conv1.conv.in_channels
        # A difference of RGB frames has the channels of an image.
        network.conv1.load_state_dict(source.conv1.state_dict() if channels == 3 else widened_conv1(source, channels))


class SharedUnit(Unit):
    """The first layer, which all branches share."""

    #: Displacement divides small differences of its features by a small temperature, so INT8's rounding errors would dominate. The layer
    #: is a fiftieth of all operations.
    unquantised = True


class AppearanceNetwork(InceptionStages):
    """BN-Inception after conv1, with 3D pooling (section 3.2): neighbouring frames are max-pooled after pool2, 3c and 4e.

    Args:
        width: Factor on the channels.
        pooling: `gradual` as above, or `late`: "one global temporal pooling after the network produces its final features"
            (section 4.2, Table 1), here the maximum of the frames' vectors. The paper does not name the operation, but its other
            poolings over time are maxima.
        blocks: See `InceptionStages`.
    """

    def __init__(self, *, width: float = 1.0, pooling: AppearancePooling = "gradual", blocks: int = 0) -> None:
        super().__init__(width=width, blocks=blocks)
        self.pooled_stages = 3 if pooling == "gradual" else 0

    def encode(self, low: Tensor, *, frames: int) -> Tensor:
        """Map conv1's features `[K * frames, 64, H, W]`, a segment's frames adjacent, to one vector per segment `[K, D]`."""
        x = low
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number < self.pooled_stages:
                x, frames = max_pool_frame_pairs(x, frames=frames)
        x = x.mean((2, 3))
        # Three poolings reduce 8 frames to one. More frames, or late pooling, leave several, of which the maximum is taken.
        return x.unflatten(0, (-1, frames)).amax(1) if frames > 1 else x


def max_pool_frame_pairs(x: Tensor, *, frames: int) -> tuple[Tensor, int]:
    """Take the maximum over each pair of neighbouring frames: "the highest responses across neighboring frames" (section 3.2).

    Args:
        x: `[K * frames, C, H, W]`, a segment's frames adjacent.
        frames: Number of frames of a segment; if it is odd, the last frame is kept unchanged.

    Returns:
        `[K * ceil(frames / 2), C, H, W]`, and the new number of frames.
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
    """Branches over the feature maps of one shared first convolution; the score is the mean of theirs.

    Attributes:
        low: The shared first convolution, `[K, 3, H, W]` to 64 channels at half the size or, for displacement maps of
            224 x 224, at the full size; absent where no branch reads features.
        measure: Computes displacement maps; absent where nothing needs them.
        appearance, motion, changes: The branches; only those that are built exist.
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
        """Name -> branch, in the order of `branch_scores`: those of appearance, motion, changes that are built."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def has_displacement(self) -> bool:
        """Whether the model computes displacement maps."""
        return "measure" in self._modules

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The branches; the shared layer belongs to appearance's part, with whose network it was pretrained, or else is a part alone."""
        branches = self.branches
        if "low" not in self._modules:
            return tuple(branches.values())
        return (nn.ModuleList([self.low, *([branches.pop("appearance")] if "appearance" in branches else [])]), *branches.values())

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """The branches' heads, in the order of `branch_scores`."""
        return tuple(branch.head for branch in self.branches.values())

    def branch_scores(self, clip: Tensor) -> Tensor:
        """Return every branch's scores of pixels separately: uint8 `[B, N, m, H, W, 3]` to `[branches, B, classes]`."""
        self._check(clip)
        # The cast comes first: TensorRT neither slices nor transposes uint8.
        vectors = self._vectors(self.normalise(self.as_frames(clip)))
        return torch.stack([head(vector) for head, vector in zip(self.heads, vectors, strict=True)])

    def forward_frames(self, x: Tensor) -> Tensor:
        """Recognise normalised frames `[B, N, m, 3, H, W]`: scores `[B, classes]`."""
        return torch.stack([head(vector) for head, vector in zip(self.heads, self._vectors(x), strict=True)]).mean(0)

    def features(self, x: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]`: `[B, N, branches * D]`, the branches' vectors concatenated."""
        return torch.cat(self._vectors(x), dim=2)

    def displacement(self, clip: Tensor) -> Tensor:
        """Return the displacement maps of pixels, in cells: uint8 `[B, N, m, H, W, 3]` to `[B, N, m-1, 2, h, w]`.

        Raises:
            FlowlessError: The clip does not fit the model, or no branch of the model needs displacement.
        """
        self._check(clip)
        if not self.has_displacement:
            raise FlowlessError(
                f"the model computes no displacement maps: branches is {'+'.join(self._names)}, changes_input {self.changes_input}. "
                f"Take one with the motion branch, or with a warped changes_input."
            )
        before, after = self._pairs(self.low(self.normalise(self.as_frames(clip)).flatten(0, 2)))
        return self.measure(before, after).unflatten(0, (-1, self.spec.segments, self.spec.frames_per_segment - 1))

    def _vectors(self, x: Tensor) -> list[Tensor]:
        """Encode normalised frames `[B, N, m, 3, H, W]`: `[B, N, D]` for each branch."""
        frames, images = self.spec.frames_per_segment, x.flatten(0, 2)
        low = self.low(images) if "low" in self._modules else images
        displacement = self.measure(*self._pairs(low)) if self.has_displacement else None
        vectors = []
        for name, branch in self.branches.items():
            if name == "appearance":
                assert isinstance(branch.network, AppearanceNetwork)
                # Every second cell of conv1 with stride 1 is conv1 with stride 2.
                halved = low[:, :, ::2, ::2] if low.shape[2:] == x.shape[-2:] else low
                vectors.append(branch.network.encode(halved, frames=frames))
                continue
            pairs = displacement if name == "motion" else self._changes(images, low, displacement)
            assert pairs is not None
            vectors.append(branch.network(pairs.to(low.dtype)).unflatten(0, (-1, frames - 1)).mean(1))
        return [vector.unflatten(0, (-1, self.spec.segments)) for vector in vectors]

    def _changes(self, images: Tensor, low: Tensor, displacement: Tensor | None) -> Tensor:
        """Return the input of the changes branch for each pair of neighbouring frames (Table 4): `[B * N * (m - 1), 64 or 3, h, w]`."""
        before, after = self._pairs(images if self.changes_input in {"rgb", "warped-rgb"} else low)
        if self.changes_input in {"rgb", "features"}:
            return after - before
        assert displacement is not None
        return warped_differences(before, after, resized_displacement(displacement, before))

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the firsts and the seconds of all pairs of neighbouring frames: `[B * N * m, …]` to two of `[B * N * (m - 1), …]`."""
        segments = x.unflatten(0, (-1, self.spec.frames_per_segment))
        return segments[:, :-1].flatten(0, 1), segments[:, 1:].flatten(0, 1)

"""The arguments of `build_model`, checked, and the parts of a model that several families build from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.backbones.timm_backbones import resnet
from flowless.train.models.layers.deep_persistence import DeepPersistence, PixelPersistence
from flowless.train.models.layers.temporal_projection import MLP_SHAPES, PixelwiseTemporalProjection
from flowless.train.models.options import AppearanceOptions, FamilyOptions, PAOptions
from flowless.train.pa.persistence import PersistenceOfAppearance

#: Standard deviation of PA's initial filters without pretrained weights: so large that the maps outweigh the RGB channels beside them.
#: PAN-Lite, one seed each, on videos that no published table uses: Moving Shapes with another seed (1,600 videos, 3 epochs) top-1 82, 80,
#: 90, 95 % with 0.02, 0.1, 0.5, 2; UTD-MHAD's depth videos (27 actions, 20 epochs) 75 and 80 % on an unseen person with 0.5 and 2.
SCRATCH_STD = 2.0
#: The same in the official code, which starts from pretrained weights; from scratch the maps would stay too small to matter.
OFFICIAL_STD = 0.001
#: The most blocks per stage: ResNet-101 has 23 in its longest.
MOST_BLOCKS = 23
#: Arguments that a checkpoint stores for every model, beside its family's options.
CONFIG = ("classes", "width", "dropout", "blocks")

Options = TypeVar("Options", bound=FamilyOptions)
PAModule = PersistenceOfAppearance | PixelPersistence


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The arguments of `build_model`; see there."""

    name: str
    classes: int
    spec: ClipSpec
    width: float = 1.0
    dropout: float = 0.5
    pretrained: bool | str = False
    pretrained_path: str | Path | None = None
    blocks: int = 0
    options: FamilyOptions = field(default_factory=FamilyOptions)

    def __post_init__(self) -> None:
        """Refuse arguments that no model can be built with."""
        if self.classes < 1:
            raise FlowlessError(f"{self.name}: classes is {self.classes}; it must be at least 1.")
        if not 0 < self.width <= 4:
            raise FlowlessError(f"{self.name}: width is {self.width}; it must be above 0 and at most 4.")
        if not 0 <= self.dropout < 1:
            raise FlowlessError(f"{self.name}: dropout is {self.dropout}; it must be at least 0 and below 1.")
        if not isinstance(self.blocks, int) or not 0 <= self.blocks <= MOST_BLOCKS:
            raise FlowlessError(
                f"{self.name}: blocks is {self.blocks!r}; it must be a whole number from 0 (as many as the backbone has) to {MOST_BLOCKS}."
            )
        if self.blocks and self.from_pretrained:
            raise FlowlessError(
                f"{self.name}: blocks is {self.blocks}; pretrained weights exist for the full depth only. "
                f"Train from scratch, or leave blocks at 0."
            )

    def options_as(self, kind: type[Options]) -> Options:
        """Return the options, typed as the family's class."""
        assert isinstance(self.options, kind), (self.name, type(self.options))
        return self.options

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that a checkpoint stores: those that `build_model` needs beside the name and the ClipSpec."""
        return {**{name: getattr(self, name) for name in CONFIG}, **self.options.model_options}

    @property
    def from_pretrained(self) -> bool:
        """Whether the backbone starts from ImageNet weights."""
        return bool(self.pretrained) or self.pretrained_path is not None

    def backbone(self) -> nn.Module:
        """Build a ResNet, `[K, 3, H, W]` to `[K, backbone.num_features]`."""
        depth = self.name.rpartition("-")[2]
        return resnet(depth, width=self.width, blocks=self.blocks, pretrained=self.pretrained, pretrained_path=self.pretrained_path)

    @property
    def maps(self) -> int:
        """Number of PA maps per segment, m - 1."""
        frames = self.spec.frames_per_segment
        if frames < 2:
            raise FlowlessError(
                f"{self.name.rpartition('-')[0]}: frames_per_segment is {frames}; PA needs at least 2 frames (the paper: 4)."
            )
        return frames - 1

    def persistence(self) -> PAModule:
        """Build a PA module."""
        options = self.options_as(PAOptions)
        std = OFFICIAL_STD if self.from_pretrained else SCRATCH_STD
        if options.pa_depth == 1:
            return PersistenceOfAppearance(encoding=options.pa_encoding, eps_inside=options.eps_inside, std=std)
        if options.pa_depth == 0:
            return PixelPersistence(encoding=options.pa_encoding)
        return DeepPersistence(depth=options.pa_depth, encoding=options.pa_encoding, std=std)

    def projection(self) -> PixelwiseTemporalProjection:
        """Build a PWTP module."""
        options = self.options_as(AppearanceOptions)
        return PixelwiseTemporalProjection(
            self.spec.frames_per_segment,
            subspace=options.da_subspace,
            kernel=options.da_kernel,
            stride=options.da_stride,
            channels=options.da_channels,
            mlp=MLP_SHAPES[options.da_mlp],
        )

"""The recognisers of dynamic appearance: the static part of each segment's frames is projected out before the backbone.

Huang and Bors, Dynamic Appearance: A Video Representation for Action Recognition with Joint Training, 2022.
"""

from __future__ import annotations

from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.backbones.timm_backbones import widen_first_conv
from flowless.train.models.backbones.vision_transformer import ClipTransformer
from flowless.train.models.backbones.x3d import X3D
from flowless.train.models.layers.heads import AverageHead
from flowless.train.models.layers.temporal_projection import PixelwiseTemporalProjection, enopr
from flowless.train.models.layers.temporal_shift import add_temporal_shift
from flowless.train.models.model_config import ModelConfig
from flowless.train.models.options import AppearanceOptions
from flowless.train.models.recognizer import Network, pixels_of
from flowless.train.models.segment_inputs import DifferenceRecognizer, DynamicImageRecognizer, StackRecognizer, input_channels


class AppearanceRecognizer(StackRecognizer):
    """A network whose backbone sees one image per segment: the dynamic appearance of the segment's T frames.

    Attributes:
        projection: PWTP; joint training adds a second loss for it.
    """

    def __init__(self, *, spec: ClipSpec, backbone: nn.Module, head: nn.Module, projection: PixelwiseTemporalProjection) -> None:
        super().__init__(spec=spec, backbone=backbone, head=head)
        self.projection = projection

    def segment_images(self, stacks: Tensor) -> Tensor:
        """Map the normalised frames of segments `[K, T, 3, H, W]` to their dynamic appearance, `[K, 3, H, W]`."""
        return self.projection(stacks)

    def appearance(self, clip: Tensor) -> Tensor:
        """Return the dynamic appearance of pixels: uint8 `[B, N, T, H, W, 3]` to `[B, N, 3, H, W]`, in normalised colours."""
        return self.images_of_pixels(clip)

    def scores_and_enopr(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores `[B, classes]` of pixels, uint8 `[B, N, T, H, W, 3]`, and PWTP's loss (Eq. 8), from one forward pass."""
        self._check(clip)
        residual = self.projection.residual(self._stacks(pixels_of(clip)))
        images = residual.mean(1).unflatten(0, (-1, self.spec.segments))
        return self.head(self._encode(images)), enopr(residual)


def da_tsm(config: ModelConfig) -> Network:
    """DA TSM: dynamic appearance in a temporal shift ResNet.

    Model card:
        Paper: section 3.3; Tables 1 and 6.
        Sees: all T frames of each segment, projected to one image of what moved. The paper: 8 x 4 on Something-Something, 8 x 6 and
            16 x 8 elsewhere.
        Size: ResNet-50, 174 classes, 8 x 4 frames of 256 x 256: 23.9 M parameters, 6.1 K of them PWTP's; 42.9 GMAC, 0.2 of
            them PWTP's.
        Variant: shift as in TSM, the segments' scores averaged, dropout before the last layer.
        Other inputs: the option `da_input` gives Table 6's RGB difference, dynamic image and RGB (8 x 6 frames there), without projection
            and without a second loss. With rgb it is TSM on each segment's first frame.
    """
    backbone, channels = config.backbone(), _channels(config)
    if channels != 3:
        widen_first_conv(backbone, channels, from_pretrained=config.from_pretrained)
    add_temporal_shift(backbone, segments=config.spec.segments)
    head = AverageHead(backbone.num_features, classes=config.classes, dropout=config.dropout)  # type: ignore[arg-type]
    return _recognizer(config, backbone=backbone, head=head)


def da_x3d(config: ModelConfig) -> Network:
    """DA X3D: dynamic appearance in a small 3D network, whose time axis is the segments.

    Model card:
        Paper: section 3.3; Tables 1 and 4. Backbone: Feichtenhofer, X3D, CVPR 2020; XS and M are one network.
        Sees: as da-tsm. The paper: XS 4 x 8 frames of 160 x 160, M 16 x 3 of 224 x 224, on Something-Something.
        Size: 174 classes: 3.3 M parameters; XS 0.7 GMAC, 0.08 of them PWTP's; M 5.0 GMAC.
        Variant: one vector per clip, since X3D pools over time before its last hidden layer.
    """
    if config.from_pretrained:
        raise FlowlessError(f"{config.name}: there are no ImageNet weights for X3D. Train from scratch, with pretrained off.")
    backbone = X3D(width=config.width, blocks=config.blocks, inputs=_channels(config))
    head = AverageHead(backbone.num_features, classes=config.classes, dropout=config.dropout)
    nn.init.normal_(head.pred.weight, std=0.01)
    return _recognizer(config, backbone=backbone, head=head)


def da_vit(config: ModelConfig) -> Network:
    """DA ViT: dynamic appearance in a vision transformer, all segments' patches in one sequence.

    Model card:
        Paper: section 3.3; Tables 1 and 2. Backbone: Dosovitskiy et al., ViT-B/16, pretrained on ImageNet-21K.
        Sees: as da-tsm, but it is blind to the order of segments, as TSN is: a clip with its segments reversed gets the same
            scores. It sees order within a segment, through dynamic appearance. The paper: 8 x 4 on Something-Something, 8 x 8
            on Kinetics400.
        Size: 174 classes: 85.9 M parameters; 179.6 GMAC for 8 x 4 frames of 224 x 224, 45 of them the attention between patches.
        Variant: one table of positions repeated for every segment, no class token, the mean of the last layer's tokens.
            Attention joins all segments. Section 4.1 says that frames do not interact in the attention, but section 3.3 says "the
            entire sequence", and without interaction the reported 45.7 % on Something-Something would be far above what single frames
            reach. The table of positions is the same for all segments. Section 3.3 ("we duplicate the positional embedding for each
            segment to encode the spatio-temporal positional information") does not say whether the copies are trained separately; only
            then would the model see the order of segments, which 45.7 % suggests (TSN, blind to order, has 19.7 %: STM, Table 4). But
            seven more tables have 1.05 M parameters, 87.0 M in all, and Table 1 has 86.3 M.
    """
    spec = config.spec
    backbone = ClipTransformer(
        height=spec.height,
        width=spec.width,
        scale=config.width,
        blocks=config.blocks,
        pretrained=config.pretrained,
        pretrained_path=config.pretrained_path,
        inputs=_channels(config),
    )
    head = AverageHead(backbone.num_features, classes=config.classes, dropout=config.dropout)
    return _recognizer(config, backbone=backbone, head=head)


def _channels(config: ModelConfig) -> int:
    return input_channels(config.options_as(AppearanceOptions).da_input, frames=config.spec.frames_per_segment)


def _recognizer(config: ModelConfig, *, backbone: nn.Module, head: nn.Module) -> Network:
    """Return the recogniser whose backbone's input is the one that `da_input` names; only dynamic appearance has parameters before it."""
    parts = {"spec": config.spec, "backbone": backbone, "head": head}
    da_input = config.options_as(AppearanceOptions).da_input
    if da_input == "dynamic-appearance":
        return AppearanceRecognizer(**parts, projection=config.projection())
    return {"rgb": Network, "rgb-difference": DifferenceRecognizer, "dynamic-image": DynamicImageRecognizer}[da_input](**parts)

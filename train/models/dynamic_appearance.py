"""The recognisers of dynamic appearance: what stands still is taken out of every segment before a network sees it.

Huang and Bors, Dynamic Appearance: A Video Representation for Action Recognition with Joint Training, 2022.
"""

from __future__ import annotations

from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.backbones.backbone import widen_first_conv
from flowless.train.models.backbones.clip_transformer import ClipTransformer
from flowless.train.models.backbones.x3d import X3D
from flowless.train.models.layers.segment_inputs import DifferenceRecognizer, DynamicImageRecognizer, StackRecognizer, input_channels
from flowless.train.models.layers.shift import add_temporal_shift
from flowless.train.models.layers.temporal_projection import PixelwiseTemporalProjection, enopr
from flowless.train.models.layers.vap import AverageHead
from flowless.train.models.options import AppearanceOptions
from flowless.train.models.plan import Plan
from flowless.train.models.recognizer import Network, pixels_of


class AppearanceRecognizer(StackRecognizer):
    """A network whose backbone sees one frame a segment, the dynamic appearance of the segment's T frames.

    Attributes:
        projection: PWTP, which joint training teaches by a loss of its own besides.
    """

    def __init__(self, *, spec: ClipSpec, backbone: nn.Module, head: nn.Module, projection: PixelwiseTemporalProjection) -> None:
        super().__init__(spec=spec, backbone=backbone, head=head)
        self.projection = projection

    def picture(self, stacks: Tensor) -> Tensor:
        """Map the normalised frames of segments `[K, T, 3, H, W]` to their dynamic appearance, `[K, 3, H, W]`."""
        return self.projection(stacks)

    def appearance(self, clip: Tensor) -> Tensor:
        """Return the dynamic appearance of pixels: uint8 `[B, N, T, H, W, 3]` to `[B, N, 3, H, W]`, in normalised colours."""
        return self.seen_of(clip)

    def scores_and_enopr(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores `[B, classes]` of pixels, uint8 `[B, N, T, H, W, 3]`, and PWTP's own loss (Eq. 8), of one graph."""
        self._check(clip)
        residual = self.projection.residual(self._stacks(pixels_of(clip)))
        seen = residual.mean(1).unflatten(0, (-1, self.spec.segments))
        return self.head(self._encode(seen)), enopr(residual)


def da_tsm(plan: Plan) -> Network:
    """DA TSM: dynamic appearance in a temporal shift ResNet.

    Model card:
        Paper: section 3.3; Tables 1 and 6.
        Sees: all T frames of each segment, as one frame of what moved. The paper: 8 x 4 on Something-Something, 8 x 6 and
            16 x 8 elsewhere.
        Size: ResNet-50, 174 classes, 8 x 4 frames of 256 x 256: 23.9 M parameters, 6.1 K of them PWTP's; 42.9 GMAC, 0.2 of
            them PWTP's.
        Variant: shift as in TSM, the segments' scores averaged, dropout before the last layer.
        Other inputs: Table 6's RGB difference, dynamic image and RGB by `da_input` (48 frames there: 8 x 6), without projection and
            without a second loss. With rgb it is TSM of each segment's first frame.
    """
    backbone, channels = plan.backbone(), _channels(plan)
    if channels != 3:
        widen_first_conv(backbone, channels, from_pretrained=plan.from_pretrained)
    add_temporal_shift(backbone, segments=plan.spec.segments)
    head = AverageHead(backbone.num_features, classes=plan.classes, dropout=plan.dropout)  # type: ignore[arg-type]
    return _recognizer(plan, backbone=backbone, head=head)


def da_x3d(plan: Plan) -> Network:
    """DA X3D: dynamic appearance in a small 3D network, whose axis of time is the segments.

    Model card:
        Paper: section 3.3; Tables 1 and 4. Backbone: Feichtenhofer, X3D, CVPR 2020; XS and M are one network.
        Sees: as da-tsm. The paper: XS 4 x 8 frames of 160 x 160, M 16 x 3 of 224 x 224, on Something-Something.
        Size: 174 classes: 3.3 M parameters; XS 0.7 GMAC, 0.08 of them PWTP's; M 5.0 GMAC.
        Variant: one vector a clip, since X3D pools over time before its last hidden layer.
    """
    if plan.from_pretrained:
        raise FlowlessError(f"{plan.name}: there are no ImageNet weights for X3D. Train from scratch, with pretrained off.")
    backbone = X3D(width=plan.width, blocks=plan.blocks, inputs=_channels(plan))
    head = AverageHead(backbone.num_features, classes=plan.classes, dropout=plan.dropout)
    nn.init.normal_(head.pred.weight, std=0.01)
    return _recognizer(plan, backbone=backbone, head=head)


def da_vit(plan: Plan) -> Network:
    """DA ViT: dynamic appearance in a vision transformer, all segments' patches in one sequence.

    Model card:
        Paper: section 3.3; Tables 1 and 2. Backbone: Dosovitskiy et al., ViT-B/16, pretrained on ImageNet-21K.
        Sees: as da-tsm, but it is blind to the order of segments, as TSN is: clips whose segments are reversed get the same
            scores. Order within a segment is seen through dynamic appearance alone. The paper: 8 x 4 on Something-Something, 8 x 8
            on Kinetics400.
        Size: 174 classes: 85.9 M parameters; 179.6 GMAC for 8 x 4 frames of 224 x 224, 45 of them the attention between patches.
        Variant: one table of positions repeated for every segment, no class token, the mean of the last layer's tokens.
            Section 4.1 says that frames do not interact in the attention; section 3.3 says "the entire sequence", and 45.7 %
            on Something-Something without interaction would be far above what frames alone reach. They interact here.
            Nor would a network that is blind to order reach it: TSN has 19.7 % (STM, Table 4). Section 3.3 would let it see order if
            the copies of the table ("we duplicate the positional embedding for each segment to encode the spatio-temporal
            positional information") learn apart, which it does not say. With the 1.05 M parameters of seven more tables there would
            be 87.0 M; Table 1 has 86.3 M. One table is repeated here.
    """
    spec = plan.spec
    backbone = ClipTransformer(
        height=spec.height,
        width=spec.width,
        scale=plan.width,
        blocks=plan.blocks,
        pretrained=plan.pretrained,
        pretrained_path=plan.pretrained_path,
        inputs=_channels(plan),
    )
    head = AverageHead(backbone.num_features, classes=plan.classes, dropout=plan.dropout)
    return _recognizer(plan, backbone=backbone, head=head)


def _channels(plan: Plan) -> int:
    return input_channels(plan.asked(AppearanceOptions).da_input, frames=plan.spec.frames_per_segment)


def _recognizer(plan: Plan, *, backbone: nn.Module, head: nn.Module) -> Network:
    """Put what the options ask for before a backbone; only dynamic appearance has something to learn there."""
    parts = {"spec": plan.spec, "backbone": backbone, "head": head}
    asked = plan.asked(AppearanceOptions).da_input
    if asked == "dynamic-appearance":
        return AppearanceRecognizer(**parts, projection=plan.projection())
    return {"rgb": Network, "rgb-difference": DifferenceRecognizer, "dynamic-image": DynamicImageRecognizer}[asked](**parts)

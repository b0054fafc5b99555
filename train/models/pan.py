"""The PAN family: motion from the change of shallow features, beside appearance or in the same network.

Zhang et al., PAN: Towards Fast Action Recognition via Learning Persistence of Appearance, 2020.
"""

from __future__ import annotations

from torch import nn

from flowless.train.models.backbones.backbone import widen_first_conv
from flowless.train.models.layers.shift import add_temporal_shift
from flowless.train.models.layers.vap import aggregation_head
from flowless.train.models.options import AggregationOptions, FusionOptions
from flowless.train.models.plan import Plan
from flowless.train.models.recognizer import FusedRecognizer, MotionOnlyRecognizer, MotionRecognizer, Network


def pan_lite(plan: Plan) -> MotionRecognizer:
    """PAN-Lite: RGB and Persistence of Appearance in one TSM ResNet, and various-timescale aggregation pooling.

    Model card:
        Paper: section IV-A, Eq. 10.
        Sees: all m frames of each segment; RGB of the first, and the m - 1 PA maps between them, as 3 + (m - 1) channels.
        Size: ResNet-50, 174 classes: 23.9 M parameters. The paper counts 35.7 GMAC for 8 x 4 frames of 224 x 224; a
            convolution of differences (m - 1 of them for m frames) saves 0.5 of those.
        Variants: temporal shift as in TSM, VAP with expansion 4, dropout before the last layer; other heads (Table IV).
    """
    backbone, head = _parts(plan, channels=3 + plan.maps)
    return MotionRecognizer(spec=plan.spec, backbone=backbone, head=head, persistence=plan.persistence())


def pan_rgb(plan: Plan) -> Network:
    """PAN-Full's RGB branch: a TSM ResNet with various-timescale aggregation pooling, without motion maps.

    Model card:
        Paper: section IV-A, Eq. 8.
        Sees: the first frame of each segment (a clip of its own needs m = 1).
        Size: ResNet-50, 174 classes: 23.9 M parameters, 32.7 GMAC for 8 frames of 224 x 224.
        Variants: as PAN-Lite.
    """
    backbone, head = _parts(plan, channels=3)
    return Network(spec=plan.spec, backbone=backbone, head=head)


def pan_pa(plan: Plan) -> MotionOnlyRecognizer:
    """PAN-Full's PA branch: the same network over the motion maps alone.

    Model card:
        Paper: section IV-A, Eq. 9.
        Sees: the m - 1 PA maps of each segment; no appearance. With m = 4 the maps take the place of red, green and blue, and a
            pretrained first convolution stays as it is (official code); other m widen it.
        Size: ResNet-50, 174 classes: 23.9 M parameters, 34.1 GMAC for 8 x 4 frames of 224 x 224.
        Variants: as PAN-Lite.
    """
    backbone, head = _parts(plan, channels=plan.maps)
    return MotionOnlyRecognizer(spec=plan.spec, backbone=backbone, head=head, persistence=plan.persistence())


def pan_full(plan: Plan) -> FusedRecognizer:
    """PAN-Full: the RGB branch and the PA branch side by side, the weighted mean of their scores.

    Model card:
        Paper: section IV-A and Fig. 3-B; official code: Full = (RGB + PA) / 2, on logits.
        Sees: all m frames of each segment: RGB of the first (branch rgb), the PA maps (branch pa). The official code samples
            the branches apart, which moves RGB's frames by up to m - 1; here both see one clip, in one call of one graph.
        Size: ResNet-50, 174 classes: 47.7 M parameters. The paper counts 67.7 GMAC for 8 x 4 frames of 224 x 224.
        Training: together, each branch by its own loss; or apart as in the paper, then `flowless fuse`.
        Variants: other weights of the branches (official code: --coeff); as PAN-Lite.
    """
    return _fused(plan, {"rgb": pan_rgb(plan), "pa": pan_pa(plan)})


def pan_en(plan: Plan) -> FusedRecognizer:
    """PAN-En: PAN-Lite and PAN-Full together, the weighted mean of their three networks' scores.

    Model card:
        Paper: section V-D and Table V; official code: En = (Lite + RGB + PA) / 3, on logits.
        Sees: as PAN-Full; PAN-Lite has PA filters of its own. The paper shows it two clips of 256 x 256.
        Size: ResNet-50, 174 classes: 71.6 M parameters. The paper counts 135 GMAC for 8 x 4 frames of 256 x 256.
        Training, variants: as PAN-Full.
    """
    return _fused(plan, {"lite": pan_lite(plan), "rgb": pan_rgb(plan), "pa": pan_pa(plan)})


def _fused(plan: Plan, branches: dict[str, Network]) -> FusedRecognizer:
    options = plan.asked(FusionOptions)
    assert tuple(branches) == options.BRANCHES
    return FusedRecognizer(spec=plan.spec, branches=branches, weights=options.fusion_weights)


def _parts(plan: Plan, *, channels: int) -> tuple[nn.Module, nn.Module]:
    """Return backbone and head; the first convolution is widened where its input is not 3 channels."""
    backbone = plan.backbone()
    segments = plan.spec.segments
    add_temporal_shift(backbone, segments=segments)
    if channels != 3:
        widen_first_conv(backbone, channels, from_pretrained=plan.from_pretrained)
    head = aggregation_head(
        backbone.num_features,  # type: ignore[arg-type]
        segments=segments,
        classes=plan.classes,
        dropout=plan.dropout,
        options=plan.asked(AggregationOptions),
    )
    return backbone, head

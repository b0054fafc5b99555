"""The PAN family: RGB frames and Persistence of Appearance (PA), motion maps from the change of shallow features.

Zhang et al., PAN: Towards Fast Action Recognition via Learning Persistence of Appearance, 2020.
"""

from __future__ import annotations

from torch import nn

from flowless.train.models.backbones.timm_backbones import widen_first_conv
from flowless.train.models.layers.heads import aggregation_head
from flowless.train.models.layers.temporal_shift import add_temporal_shift
from flowless.train.models.model_config import ModelConfig
from flowless.train.models.options import AggregationOptions, FusionOptions, ShiftOptions
from flowless.train.models.recognizer import FusedRecognizer, MotionOnlyRecognizer, MotionRecognizer, Network


def pan_lite(config: ModelConfig) -> MotionRecognizer:
    """PAN-Lite: RGB and Persistence of Appearance in one TSM ResNet, and various-timescale aggregation pooling.

    Model card:
        Paper: section IV-A, Eq. 10.
        Sees: all m frames of each segment; RGB of the first, and the m - 1 PA maps between them, as 3 + (m - 1) channels.
        Size: ResNet-50, 174 classes: 23.9 M parameters. The paper counts 35.7 GMAC for 8 x 4 frames of 224 x 224; here it is 0.5 less,
            since PA convolves the m - 1 differences instead of the m frames.
        Variants: temporal shift as in TSM, VAP with expansion 4, dropout before the last layer; other heads (Table IV). With the option
            `causal` the shift is TSM's online one, and RGB is the last frame of each segment.
    """
    causal = _is_causal(config)
    backbone, head = _parts(config, channels=3 + config.maps, causal=causal)
    return MotionRecognizer(spec=config.spec, backbone=backbone, head=head, persistence=config.persistence(), causal=causal)


def pan_rgb(config: ModelConfig) -> Network:
    """PAN-Full's RGB branch: a TSM ResNet with various-timescale aggregation pooling, without motion maps.

    Model card:
        Paper: section IV-A, Eq. 8.
        Sees: the first frame of each segment (trained alone, m = 1 is enough).
        Size: ResNet-50, 174 classes: 23.9 M parameters, 32.7 GMAC for 8 frames of 224 x 224.
        Variants: as PAN-Lite, also causal.
    """
    causal = _is_causal(config)
    backbone, head = _parts(config, channels=3, causal=causal)
    return Network(spec=config.spec, backbone=backbone, head=head, causal=causal)


def pan_pa(config: ModelConfig) -> MotionOnlyRecognizer:
    """PAN-Full's PA branch: the same network over the motion maps alone.

    Model card:
        Paper: section IV-A, Eq. 9.
        Sees: the m - 1 PA maps of each segment; no RGB. With m = 4 there are three maps, and a pretrained first convolution for RGB is
            used unchanged (official code); for another m it is widened.
        Size: ResNet-50, 174 classes: 23.9 M parameters, 34.1 GMAC for 8 x 4 frames of 224 x 224.
        Variants: as PAN-Lite.
    """
    backbone, head = _parts(config, channels=config.maps)
    return MotionOnlyRecognizer(spec=config.spec, backbone=backbone, head=head, persistence=config.persistence())


def pan_full(config: ModelConfig) -> FusedRecognizer:
    """PAN-Full: the RGB branch and the PA branch side by side; the score is the weighted mean of theirs.

    Model card:
        Paper: section IV-A and Fig. 3-B; official code: Full = (RGB + PA) / 2, on logits.
        Sees: all m frames of each segment: RGB of the first (branch rgb), the PA maps (branch pa). The official code samples the
            branches' clips separately, so that RGB's frames may lie up to m - 1 frames off; here both branches see the same clip.
        Size: ResNet-50, 174 classes: 47.7 M parameters. The paper counts 67.7 GMAC for 8 x 4 frames of 224 x 224.
        Training: together, each branch by its own loss; or separately as in the paper, then `flowless fuse`.
        Variants: other weights of the branches (official code: --coeff); as PAN-Lite.
    """
    return _fused(config, {"rgb": pan_rgb(config), "pa": pan_pa(config)})


def pan_en(config: ModelConfig) -> FusedRecognizer:
    """PAN-En: PAN-Lite and PAN-Full together; the score is the weighted mean of their three networks'.

    Model card:
        Paper: section V-D and Table V; official code: En = (Lite + RGB + PA) / 3, on logits.
        Sees: as PAN-Full; the branch lite has separate PA filters. The paper tests it on two clips of 256 x 256.
        Size: ResNet-50, 174 classes: 71.6 M parameters. The paper counts 135 GMAC for 8 x 4 frames of 256 x 256.
        Training, variants: as PAN-Full.
    """
    return _fused(config, {"lite": pan_lite(config), "rgb": pan_rgb(config), "pa": pan_pa(config)})


def _is_causal(config: ModelConfig) -> bool:
    """Return the option `causal`; False for a branch of pan-full or pan-en, which have no such option."""
    return isinstance(config.options, ShiftOptions) and config.options.causal


def _fused(config: ModelConfig, branches: dict[str, Network]) -> FusedRecognizer:
    options = config.options_as(FusionOptions)
    assert tuple(branches) == options.BRANCHES
    return FusedRecognizer(spec=config.spec, branches=branches, weights=options.fusion_weights)


def _parts(config: ModelConfig, *, channels: int, causal: bool = False) -> tuple[nn.Module, nn.Module]:
    """Return backbone and head; for an input of more than 3 channels the first convolution is widened."""
    backbone = config.backbone()
    segments = config.spec.segments
    add_temporal_shift(backbone, segments=segments, causal=causal)
    if channels != 3:
        widen_first_conv(backbone, channels, from_pretrained=config.from_pretrained)
    head = aggregation_head(
        backbone.num_features,  # type: ignore[arg-type]
        segments=segments,
        classes=config.classes,
        dropout=config.dropout,
        options=config.options_as(AggregationOptions),
    )
    return backbone, head

"""PAN-Lite: motion from the change of shallow features, in the same network as appearance."""

from __future__ import annotations

from typing import Literal

from torch import nn

from flowless.errors import FlowlessError
from flowless.pipeline.spec import ClipSpec
from flowless.train.models.backbone import widen_first_conv
from flowless.train.models.recognizer import MotionRecognizer
from flowless.train.models.shift import add_temporal_shift
from flowless.train.models.vap import VariousTimescaleAggregationPooling
from flowless.train.persistence import PersistenceOfAppearance

#: Start of the PA filters without pretrained weights: large enough that motion outweighs the RGB channels beside it. (Moving
#: Shapes, 1,200 videos, 3 epochs: 66 % of unseen videos right; with 0.03, a map about as bright as the pixels, chance.)
SCRATCH_STD = 0.5


def pan_lite(
    backbone: nn.Module,
    *,
    features: int,
    classes: int,
    spec: ClipSpec,
    dropout: float,
    pa_encoding: Literal["e1", "e2"],
    from_pretrained: bool,
) -> MotionRecognizer:
    """PAN-Lite: RGB and Persistence of Appearance in one TSM ResNet, and various-timescale aggregation pooling.

    Model card:
        Paper: Zhang et al., PAN: Towards Fast Action Recognition via Learning Persistence of Appearance, 2020.
        Sees: all m frames of each segment; RGB of the first, and the m - 1 PA maps between them, as 3 + (m - 1) channels.
        Size: ResNet-50, 174 classes: 23.9 M parameters. The paper counts 35.7 GMAC for 8 x 4 frames of 224 x 224; a
            convolution of differences (m - 1 of them for m frames) saves 0.5 of those.
        Variant: temporal shift as in TSM, VAP with expansion 4, dropout before the last layer.
    """
    if spec.frames_per_segment < 2:
        raise FlowlessError(f"pan-lite: frames_per_segment is {spec.frames_per_segment}; PA needs at least 2 frames (the paper: 4).")
    add_temporal_shift(backbone, segments=spec.segments)
    widen_first_conv(backbone, 3 + spec.frames_per_segment - 1, from_pretrained=from_pretrained)
    head = VariousTimescaleAggregationPooling(features, segments=spec.segments, classes=classes, dropout=dropout)
    # The official start is made for pretrained weights and long training; from scratch the maps would stay invisible.
    persistence = PersistenceOfAppearance(encoding=pa_encoding, std=0.001 if from_pretrained else SCRATCH_STD)
    return MotionRecognizer(spec=spec, backbone=backbone, head=head, persistence=persistence)

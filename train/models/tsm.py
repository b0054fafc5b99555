"""TSM: the baseline that mixes neighbouring segments inside the backbone."""

from __future__ import annotations

from torch import nn

from flowless.pipeline.spec import ClipSpec
from flowless.train.models.recognizer import Recognizer
from flowless.train.models.shift import add_temporal_shift
from flowless.train.models.vap import AverageHead


def tsm(backbone: nn.Module, *, features: int, classes: int, spec: ClipSpec, dropout: float) -> Recognizer:
    """Temporal Shift Module: TSN whose residual blocks first trade channels with the neighbouring segments.

    Model card:
        Paper: Lin, Gan and Han, TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019.
        Sees: the first frame of each segment; order through the shifts.
        Size: as TSN, 23.9 M parameters and 32.7 GMAC with ResNet-50 and 8 frames of 224 x 224: a shift computes nothing.
        Variant: blockres, an eighth of the channels each way, offline (both directions).
    """
    add_temporal_shift(backbone, segments=spec.segments)
    return Recognizer(spec=spec, backbone=backbone, head=AverageHead(features, classes=classes, dropout=dropout))

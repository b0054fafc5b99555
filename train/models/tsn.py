"""TSN: the baseline that sees single frames and no order."""

from __future__ import annotations

from torch import nn

from flowless.pipeline.spec import ClipSpec
from flowless.train.models.recognizer import Recognizer
from flowless.train.models.vap import AverageHead


def tsn(backbone: nn.Module, *, features: int, classes: int, spec: ClipSpec, dropout: float) -> Recognizer:
    """Temporal Segment Network: a ResNet on one frame a segment, and the segments' scores averaged.

    Model card:
        Paper: Wang et al., Temporal Segment Networks, ECCV 2016 (the consensus function "average", RGB modality).
        Sees: the first frame of each segment; blind to the order of segments, by construction.
        Size: ResNet-50, 174 classes: 23.9 M parameters, 32.7 GMAC for 8 frames of 224 x 224.
        Use: the baseline. What another model gains over it is temporal modelling.
    """
    return Recognizer(spec=spec, backbone=backbone, head=AverageHead(features, classes=classes, dropout=dropout))

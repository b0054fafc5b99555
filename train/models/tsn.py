"""TSN: the baseline that sees single frames and no order."""

from __future__ import annotations

from flowless.train.models.layers.vap import AverageHead
from flowless.train.models.plan import Plan
from flowless.train.models.recognizer import Network


def tsn(plan: Plan) -> Network:
    """Temporal Segment Network: a ResNet on one frame a segment, and the segments' scores averaged.

    Model card:
        Paper: Wang et al., Temporal Segment Networks, ECCV 2016 (the consensus function "average", RGB modality).
        Sees: the first frame of each segment; blind to the order of segments, by construction.
        Size: ResNet-50, 174 classes: 23.9 M parameters, 32.7 GMAC for 8 frames of 224 x 224.
        Use: the baseline. What another model gains over it is temporal modelling.
    """
    backbone = plan.backbone()
    head = AverageHead(backbone.num_features, classes=plan.classes, dropout=plan.dropout)  # type: ignore[arg-type]
    return Network(spec=plan.spec, backbone=backbone, head=head)

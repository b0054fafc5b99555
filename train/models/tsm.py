"""TSM: the baseline that mixes neighbouring segments inside the backbone."""

from __future__ import annotations

from flowless.train.models.layers.shift import add_temporal_shift
from flowless.train.models.plan import Plan
from flowless.train.models.recognizer import Network
from flowless.train.models.tsn import tsn


def tsm(plan: Plan) -> Network:
    """Temporal Shift Module: TSN whose residual blocks first trade channels with the neighbouring segments.

    Model card:
        Paper: Lin, Gan and Han, TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019.
        Sees: the first frame of each segment; order through the shifts.
        Size: as TSN, 23.9 M parameters and 32.7 GMAC with ResNet-50 and 8 frames of 224 x 224: a shift computes nothing.
        Variant: blockres, an eighth of the channels each way, offline (both directions).
    """
    model = tsn(plan)
    add_temporal_shift(model.backbone, segments=plan.spec.segments)
    return model

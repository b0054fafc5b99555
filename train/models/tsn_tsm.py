"""The baselines TSN, which is blind to the order of segments, and TSM, which shifts channels between neighbouring segments."""

from __future__ import annotations

from flowless.train.models.layers.heads import AverageHead
from flowless.train.models.layers.temporal_shift import add_temporal_shift
from flowless.train.models.model_config import ModelConfig
from flowless.train.models.options import ShiftOptions
from flowless.train.models.recognizer import Network


def tsn(config: ModelConfig) -> Network:
    """Temporal Segment Network: a ResNet on one frame per segment; the segments' scores are averaged.

    Model card:
        Paper: Wang et al., Temporal Segment Networks, ECCV 2016 (the consensus function "average", RGB modality).
        Sees: the first frame of each segment; blind to the order of segments, by construction.
        Size: ResNet-50, 174 classes: 23.9 M parameters, 32.7 GMAC for 8 frames of 224 x 224.
        Use: the baseline. The gain of another model over it is due to temporal modelling.
    """
    backbone = config.backbone()
    head = AverageHead(backbone.num_features, classes=config.classes, dropout=config.dropout)  # type: ignore[arg-type]
    return Network(spec=config.spec, backbone=backbone, head=head)


def tsm(config: ModelConfig) -> Network:
    """Temporal Shift Module: TSN whose residual blocks first exchange channels with the neighbouring segments.

    Model card:
        Paper: Lin, Gan and Han, TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019.
        Sees: the first frame of each segment; order through the shifts.
        Size: as TSN, 23.9 M parameters and 32.7 GMAC with ResNet-50 and 8 frames of 224 x 224: a shift has no parameters and no MACs.
        Variants: blockres, an eighth of the channels each way, offline (both directions); or with the option `causal` online: an eighth of
            the channels from the segment before, none from the next, and the newest frame of each segment.
    """
    model, causal = tsn(config), config.options_as(ShiftOptions).causal
    add_temporal_shift(model.backbone, segments=config.spec.segments, causal=causal)
    model.causal = causal
    return model

"""STM: a ResNet whose residual blocks also model time and motion; see `layers.stm_block`.

Wang et al., Learning SpatioTemporal and Motion Features in a Unified 2D Network for Action Recognition, which extends Jiang et al., STM,
ICCV 2019.
"""

from __future__ import annotations

from flowless.train.models.layers.stm_block import add_stm_blocks
from flowless.train.models.model_config import ModelConfig
from flowless.train.models.options import STMOptions
from flowless.train.models.recognizer import Network
from flowless.train.models.tsn_tsm import tsn


def stm(config: ModelConfig) -> Network:
    """STM: a ResNet whose residual blocks also convolve each channel over the segments and encode the motion between them.

    Model card:
        Paper: sections 3.1, 3.2 and 3.4, Fig. 3, Table 4.
        Sees: the first frame of each segment; order and motion through every block.
        Size: ResNet-50, 174 classes: 24.0 M parameters, 33.0 GMAC for 8 frames of 224 x 224 (the paper: 24.0 M, 33.3 G).
        Variants: which modules (Table 6), sum or concatenation (Table 7), frequency degeneration (Table 8), which blocks (Table 9),
            types of convolution (Table 10).
    """
    model = tsn(config)
    options = config.options_as(STMOptions)
    add_stm_blocks(model.backbone, segments=config.spec.segments, options=options, without_motion=config.from_pretrained)
    return model

"""Build a recogniser by its name, a family and a backbone. Each family is a function, whose docstring is its model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.disentangling import disentangling
from flowless.train.models.dynamic_appearance import da_tsm, da_vit, da_x3d
from flowless.train.models.model_config import ModelConfig
from flowless.train.models.options import family_of, options_for
from flowless.train.models.pan import pan_en, pan_full, pan_lite, pan_pa, pan_rgb
from flowless.train.models.recognizer import Recognizer
from flowless.train.models.stm import stm
from flowless.train.models.tsn_tsm import tsm, tsn

#: Family -> the function whose docstring is its model card.
FAMILIES: dict[str, Callable[[ModelConfig], Recognizer]] = {
    "tsn": tsn,
    "tsm": tsm,
    "stm": stm,
    "pan-lite": pan_lite,
    "pan-rgb": pan_rgb,
    "pan-pa": pan_pa,
    "pan-full": pan_full,
    "pan-en": pan_en,
    "da-tsm": da_tsm,
    "da-x3d": da_x3d,
    "da-vit": da_vit,
    "disentangling": disentangling,
}


def build_model(
    name: str,
    *,
    classes: int,
    spec: ClipSpec,
    width: float = 1.0,
    dropout: float = 0.5,
    pretrained: bool | str = False,
    pretrained_path: str | Path | None = None,
    blocks: int = 0,
    **options: Any,
) -> Recognizer:
    """Build a recogniser.

    Args:
        name: One of `MODELS`, such as pan-lite-r50.
        classes: Number of scores.
        spec: The model's clip, with the mean and standard deviation by which the model normalises pixels.
        width: Factor on the backbone's channels (0.25: a ResNet with 16, 32, 64, 128).
        dropout: Dropout probability before the last layer.
        pretrained: Start from ImageNet weights loaded by timm: True for those of the paper, or timm's tag, such as a1_in1k.
        pretrained_path: Start from ImageNet weights in this file.
        blocks: Depth of the backbone, 1 to 23. ResNets, X3D: residual blocks per stage; BN-Inception: modules per stage; ViT: blocks in
            all. 0 is the depth that the name says.
        **options: The family's options, see `flowless.train.models.options.OPTIONS`.

    Raises:
        FlowlessError: The name is unknown, the family has no such option, or the arguments do not fit each other.
    """
    family = family_of(name)
    config = ModelConfig(
        name=name,
        classes=classes,
        spec=spec,
        width=width,
        dropout=dropout,
        pretrained=pretrained,
        pretrained_path=pretrained_path,
        blocks=blocks,
        options=options_for(name, options),
    )
    model = FAMILIES[family](config)
    model.config = config.to_dict()
    return model

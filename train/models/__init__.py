"""The recognisers by name. A model is a plain function with its model card; a name is the function and a backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.backbone import DEPTHS
from flowless.train.models.disentangling import DisentanglingRecognizer, disentangling
from flowless.train.models.dynamic_appearance import AppearanceRecognizer, da_tsm, da_vit, da_x3d
from flowless.train.models.options import BACKBONES, ModelOptions
from flowless.train.models.pan import pan_en, pan_full, pan_lite, pan_pa, pan_rgb
from flowless.train.models.plan import Plan
from flowless.train.models.recognizer import FusedRecognizer, MotionOnlyRecognizer, MotionRecognizer, Network, Recognizer
from flowless.train.models.stm import stm
from flowless.train.models.tsm import tsm
from flowless.train.models.tsn import tsn

__all__ = [
    "FAMILIES",
    "MODELS",
    "AppearanceRecognizer",
    "DisentanglingRecognizer",
    "FusedRecognizer",
    "ModelOptions",
    "MotionOnlyRecognizer",
    "MotionRecognizer",
    "Network",
    "Recognizer",
    "build_model",
]

#: Family -> the function whose docstring is its model card.
FAMILIES: dict[str, Callable[[Plan], Recognizer]] = {
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
#: Every name that `build_model` knows.
MODELS = tuple(f"{family}-{backbone}" for family in FAMILIES for backbone in BACKBONES.get(family, tuple(DEPTHS)))


def build_model(
    name: str,
    *,
    classes: int,
    spec: ClipSpec,
    width: float = 1.0,
    dropout: float = 0.5,
    pretrained: bool = False,
    pretrained_path: str | Path | None = None,
    **options: Unpack[ModelOptions],
) -> Recognizer:
    """Build a recogniser.

    Args:
        name: One of `MODELS`, such as pan-lite-r50.
        classes: Scores to predict.
        spec: What a clip is; the model normalises by it.
        width: Factor on the backbone's channels (0.25: 16, 32, 64, 128).
        dropout: Share of the features dropped before the last layer, in training.
        pretrained: Start from ImageNet weights, by timm's own loading.
        pretrained_path: Start from ImageNet weights in this file.
        **options: See `ModelOptions`.

    Raises:
        FlowlessError: The name is unknown, or the arguments do not fit each other.
    """
    if name not in MODELS:
        raise FlowlessError(f"model is {name!r}; it must be one of {', '.join(MODELS)}.")
    plan = Plan(
        name=name,
        classes=classes,
        spec=spec,
        width=width,
        dropout=dropout,
        pretrained=pretrained,
        pretrained_path=pretrained_path,
        **options,
    )
    model = FAMILIES[name.rpartition("-")[0]](plan)
    model.config = plan.config
    return model

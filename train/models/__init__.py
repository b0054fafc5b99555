"""The recognisers by name. A model is a plain function with its model card; a name is the function and a depth."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flowless.errors import FlowlessError
from flowless.pipeline.spec import ClipSpec
from flowless.train.models.backbone import DEPTHS, resnet
from flowless.train.models.pan import pan_lite
from flowless.train.models.recognizer import MotionRecognizer, Recognizer
from flowless.train.models.tsm import tsm
from flowless.train.models.tsn import tsn

__all__ = ["FAMILIES", "MODELS", "MotionRecognizer", "Recognizer", "build_model"]

#: Family -> the function whose docstring is its model card.
FAMILIES = {"tsn": tsn, "tsm": tsm, "pan-lite": pan_lite}
#: Every name that `build_model` knows.
MODELS = tuple(f"{family}-{depth}" for family in FAMILIES for depth in DEPTHS)


def build_model(
    name: str,
    *,
    classes: int,
    spec: ClipSpec,
    width: float = 1.0,
    dropout: float = 0.5,
    pa_encoding: Literal["e1", "e2"] = "e1",
    pretrained: bool = False,
    pretrained_path: str | Path | None = None,
) -> Recognizer:
    """Build a recogniser.

    Args:
        name: One of `MODELS`, such as pan-lite-r50.
        classes: Scores to predict.
        spec: What a clip is; the model normalises by it.
        width: Factor on the backbone's channels (0.25: 16, 32, 64, 128).
        dropout: Share of the features dropped before the last layer, in training.
        pa_encoding: PAN-Lite only: PA maps as channels (e1) or as attention (e2).
        pretrained: Start from ImageNet weights, by timm's own loading.
        pretrained_path: Start from ImageNet weights in this file.

    Raises:
        FlowlessError: The name is unknown, or the arguments do not fit each other.
    """
    if name not in MODELS:
        raise FlowlessError(f"model is {name!r}; it must be one of {', '.join(MODELS)}.")
    if classes < 1 or not 0 < width <= 4 or not 0 <= dropout < 1:
        raise FlowlessError(f"{name}: classes {classes}, width {width}, dropout {dropout}; they must be at least 1, in (0, 4], in [0, 1).")
    family, _, depth = name.rpartition("-")
    backbone = resnet(depth, width=width, pretrained=pretrained, pretrained_path=pretrained_path)
    features: int = backbone.num_features  # type: ignore[assignment]
    if family == "tsn":
        model = tsn(backbone, features=features, classes=classes, spec=spec, dropout=dropout)
    elif family == "tsm":
        model = tsm(backbone, features=features, classes=classes, spec=spec, dropout=dropout)
    else:
        model = pan_lite(
            backbone,
            features=features,
            classes=classes,
            spec=spec,
            dropout=dropout,
            pa_encoding=pa_encoding,
            from_pretrained=pretrained or pretrained_path is not None,
        )
    model.config = {"classes": classes, "width": width, "dropout": dropout, "pa_encoding": pa_encoding}
    return model

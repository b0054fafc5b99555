"""Named test protocols: number, size and averaging of the views of a video, applied to a ClipSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import Average, ClipSpec, CropRule, EvaluationRule

Views = Literal[
    "one-view",
    "two-clip",
    "dense",
    "consecutive",
    "three-crop",
    "three-crop-two-clip",
    "full-resolution",
    "three-view",
    "six-view",
    "thirty-view",
    "thirty-draw",
    "three-consecutive",
    "thirty-consecutive",
    "centre",
]
#: Every value of `--views` except `paper`.
PROTOCOLS: tuple[Views, ...] = get_args(Views)
#: Values of `--views`: a protocol, or `paper` for the one that the checkpoint's recipe names.
ViewsOption = Literal[Views, "paper"]
#: Older name -> protocol.
ALIASES: dict[str, Views] = {"centre": "one-view"}


@dataclass(frozen=True, kw_only=True)
class _Protocol:
    sampling: EvaluationRule = "centre"
    crop: CropRule = "centre"
    side: Literal["own", "full", "shrunk"] = "own"
    """Frame size: the model's own; a square of the short side (full); or such a square, resized to the model's own size (shrunk)."""
    average: Average | None = None
    """What is averaged over the views; None: as the model's ClipSpec."""


#: Where two protocols give the same ClipSpec, because a model's frame is as large as its short side, `protocol_name` returns the first.
_RULES: dict[str, _Protocol] = {
    "full-resolution": _Protocol(sampling="two-clip", side="full"),
    "thirty-view": _Protocol(sampling="dense", crop="three", side="full"),
    "three-view": _Protocol(crop="three", side="full", average="softmax"),
    "six-view": _Protocol(sampling="two-clip", crop="three", side="full", average="softmax"),
    "thirty-draw": _Protocol(sampling="ten-draw", crop="three", side="shrunk", average="softmax"),
    "three-consecutive": _Protocol(sampling="consecutive", crop="three", side="full", average="softmax"),
    "thirty-consecutive": _Protocol(sampling="ten-consecutive", crop="three", side="full", average="softmax"),
    "one-view": _Protocol(),
    "two-clip": _Protocol(sampling="two-clip"),
    "dense": _Protocol(sampling="dense"),
    "consecutive": _Protocol(sampling="consecutive"),
    "three-crop": _Protocol(crop="three"),
    "three-crop-two-clip": _Protocol(sampling="two-clip", crop="three", average="softmax"),
}
#: Protocols that keep the model's frame size, which an exported graph of fixed size needs.
SAME_SIZE = tuple(name for name, rule in _RULES.items() if rule.side != "full")


def protocol_spec(spec: ClipSpec, name: Views | str) -> ClipSpec:
    """Apply a test protocol to a model's ClipSpec.

    =================== ===== ================== ============= ========= ==========================================================
    name                crops clips              frame         average   used for
    =================== ===== ================== ============= ========= ==========================================================
    one-view            1     1                  own           model's   PAN, section V-A: "1 view"; STM, section 4.5; Dynamic
                                                                         Appearance's ablations
    two-clip            1     2                  own           model's
    dense               1     10, dense          own           model's
    consecutive         1     1, consecutive     own           model's   Dynamic Appearance's ablations on Kinetics, appendix A
    three-crop          3     1                  own           model's
    three-crop-two-clip 3     2                  own           softmax   Dynamic Appearance, X3D-XS (160 x 160), appendix A
    full-resolution     1     2                  short side    model's   PAN, section V-A on Kinetics, UCF101 and HMDB51, and
                                                                         PAN-En, section V-C: "2 views"
    three-view          3     1                  short side    softmax   Dynamic Appearance, ViT on Something-Something, Table 1
    six-view            3     2                  short side    softmax   Dynamic Appearance: Something-Something (Table 1), UCF101 and
                                                                         HMDB51 (section 4.1)
    thirty-view         3     10, dense          short side    model's   TSM on Kinetics; "the common practice (30 views)" of PAN
    thirty-draw         3     10, random         short side,   softmax   STM, section 4.2
                                                 shrunk to own
    three-consecutive   3     1, consecutive     short side    softmax   Dynamic Appearance, ViT on Kinetics, Table 2
    thirty-consecutive  3     10, consecutive    short side    softmax   Dynamic Appearance on Kinetics, Table 2
    =================== ===== ================== ============= ========= ==========================================================

    Frame "short side" is a square crop of the short side (256), as "full resolution" in PAN's published code; "shrunk to own" resizes
    that crop to the model's frame (224). Average "model's" is the recipe's: logits for PAN, TSM and TSN, as in their published code;
    softmax for STM (section 4.2) and Dynamic Appearance (appendix A). The Disentangling paper specifies neither views nor average: its
    recipes name no protocol and average logits, as TSN does, whose practice it follows. TSN's own test (25 frames, ten crops with flips)
    is not included. The short side for X3D-XS's crops of 160 x 160 is not specified in the paper; the model's own (182) is used.

    Args:
        spec: The model's ClipSpec; its short side, segments and normalisation are kept.
        name: One of `PROTOCOLS`.

    Raises:
        FlowlessError: There is no such protocol, or it shrinks square crops and the model's frame is not square.
    """
    rule = _RULES.get(ALIASES.get(name, name))
    if rule is None:
        raise FlowlessError(f"views is {name!r}; it must be one of {', '.join(PROTOCOLS)}.")
    if rule.side == "shrunk" and spec.height != spec.width:
        raise FlowlessError(
            f"views is {name!r}, which shrinks square crops; the model's frame is {spec.height} x {spec.width}. Use three-crop, or "
            f"a model with a square frame."
        )
    return _cut(spec, rule)


def protocol_name(spec: ClipSpec) -> str:
    """Return the name of the protocol that a ClipSpec follows, or its crop and sampling rules where no protocol matches."""
    fits = (name for name, rule in _RULES.items() if rule.side != "shrunk" or spec.height == spec.width)
    return next((name for name in fits if _cut(spec, _RULES[name]) == spec), f"{spec.crop} crop, {spec.sampling}")


def paper_views(recipe: Mapping[str, Any]) -> Views:
    """Return the protocol that a checkpoint's recipe names as its paper's.

    Args:
        recipe: The recipe's fields, as the checkpoint keeps them.

    Raises:
        FlowlessError: The recipe names no protocol.
    """
    name = recipe.get("test_views")
    if name not in PROTOCOLS:
        raise FlowlessError(
            f"views is 'paper', but the model's recipe ({recipe.get('name', 'none')}) names no test protocol: its paper has none for these "
            f"data, or the checkpoint is older. Choose one of {', '.join(PROTOCOLS)}."
        )
    return name


def _cut(spec: ClipSpec, rule: _Protocol) -> ClipSpec:
    side = spec.short_side
    height, width = (side, side) if rule.side == "full" else (spec.height, spec.width)
    return replace(
        spec,
        sampling=rule.sampling,
        crop=rule.crop,
        height=height,
        width=width,
        crop_side=side if rule.side == "shrunk" and side != height else None,
        average=rule.average or spec.average,
    )

"""Test protocols by name: how many views of a video are scored and how large they are. Each is a change of ClipSpec."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec, CropRule, EvaluationRule

Views = Literal["one-view", "two-clip", "dense", "three-crop", "full-resolution", "thirty-view", "centre"]
#: Every name that `--views` takes.
PROTOCOLS: tuple[Views, ...] = get_args(Views)
#: Older names.
ALIASES: dict[str, Views] = {"centre": "one-view"}


@dataclass(frozen=True, kw_only=True)
class _Protocol:
    sampling: EvaluationRule = "centre"
    crop: CropRule = "centre"
    full: bool = False


#: Where two say the same of a model, because its frame is as large as its short side, the first names it.
_RULES: dict[str, _Protocol] = {
    "full-resolution": _Protocol(sampling="two-clip", full=True),
    "thirty-view": _Protocol(sampling="dense", crop="three", full=True),
    "one-view": _Protocol(),
    "two-clip": _Protocol(sampling="two-clip"),
    "dense": _Protocol(sampling="dense"),
    "three-crop": _Protocol(crop="three"),
}
#: Protocols that leave the frame as large as the model has it: what a graph of fixed size can run.
SAME_SIZE = tuple(name for name, rule in _RULES.items() if not rule.full)


def protocol_spec(spec: ClipSpec, name: Views | str) -> ClipSpec:
    """Return the ClipSpec by which a test protocol cuts views; the scores of a video's views are averaged before any softmax.

    ================= ======= ======= ============================ =====================================================
    name              crops   clips   frame                        used for
    ================= ======= ======= ============================ =====================================================
    one-view          1       1       the model's own              PAN-Lite and PAN-Full, Section V-A: "1 view"
    two-clip          1       2       the model's own
    dense             1       10      the model's own
    three-crop        3       1       the model's own
    full-resolution   1       2       short side, square (256)     PAN-En, Section V-C: full resolution x 2 clips, "2 views"
    thirty-view       3       10      short side, square (256)     Kinetics, "the common practice (30 views)"
    ================= ======= ======= ============================ =====================================================

    Full resolution is what the published code makes of it: after the resize, a centre crop as large as the frame's short side.

    Args:
        spec: What the model was trained on; its short side, segments and normalisation stay.
        name: One of `PROTOCOLS`.

    Raises:
        FlowlessError: There is no such protocol.
    """
    rule = _RULES.get(ALIASES.get(name, name))
    if rule is None:
        raise FlowlessError(f"views is {name!r}; it must be one of {', '.join(PROTOCOLS)}.")
    height, width = (spec.short_side, spec.short_side) if rule.full else (spec.height, spec.width)
    return replace(spec, sampling=rule.sampling, crop=rule.crop, height=height, width=width)


def protocol_name(spec: ClipSpec) -> str:
    """Return the name of the protocol by which a ClipSpec cuts views already, or its rules where none has a name."""
    named = (name for name in _RULES if protocol_spec(spec, name) == spec)
    return next(named, f"{spec.crop} crop, {spec.sampling}")

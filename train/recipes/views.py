"""How the papers test their models, as recipes name it: the protocol of their tables. No heavy library is imported here."""

from __future__ import annotations

from typing import Any

from flowless.pipeline.clip.protocols import Views

#: Data sets of scenes.
_SCENES = ("kinetics400", "ucf101", "hmdb51")
_PUBLIC = ("something-v1", "something-v2", "jester", *_SCENES)


def view_changes(model: str, data: str) -> dict[str, Any]:
    """Return what a recipe says of views: `average`, `test_views` and, on Kinetics, consecutive frames for dynamic appearance.

    `protocols.protocol_spec` has the table with the papers' sections. TSN, TSM and Disentangling are tested in their papers in ways
    that have no name here, or that they do not say; data of one's own have no paper.

    Args:
        model: Such as stm-r50.
        data: The data set's name in a recipe.
    """
    family = model.rpartition("-")[0]
    changes: dict[str, Any] = {"average": "softmax"} if family == "stm" or family.startswith("da-") else {}
    views = _paper_views(model, family, data) if data in _PUBLIC else None
    if views is not None:
        changes["test_views"] = views
    if family.startswith("da-") and data == "kinetics400":
        changes |= {"sampling": "consecutive", "training_sampling": "consecutive"}
    return changes


def _paper_views(model: str, family: str, data: str) -> Views | None:
    if family == "stm":
        return "thirty-draw"
    if family.startswith("pan-"):
        return "full-resolution" if family == "pan-en" or data in _SCENES else "one-view"
    if not family.startswith("da-"):
        return None
    if data == "kinetics400":
        return "three-consecutive" if family == "da-vit" else "thirty-consecutive"
    if model == "da-x3d-xs":
        return "three-crop-two-clip"
    return "three-view" if family == "da-vit" and data not in _SCENES else "six-view"

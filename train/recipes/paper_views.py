"""The test protocol of each model's paper, for recipes. No heavy library is imported here."""

from __future__ import annotations

from typing import Any

from flowless.pipeline.clip.protocols import Views

#: Data sets whose actions can mostly be recognised from the scene.
_SCENES = ("kinetics400", "ucf101", "hmdb51")
_PUBLIC = ("something-v1", "something-v2", "jester", *_SCENES)


def view_changes(model: str, data: str) -> dict[str, Any]:
    """Return the recipe's fields about test views: `average`, `test_views` and, for dynamic appearance on Kinetics, the sampling.

    `protocols.protocol_spec` has the table of protocols with the papers' sections. The protocols of TSN, TSM and Disentangling are not
    among them, or not stated in the papers; data sets of no paper have none.

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

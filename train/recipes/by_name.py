"""Find a recipe by its name `model/data set`: the fields that each data set and each model change. No heavy library is imported here."""

from __future__ import annotations

from typing import Any

from flowless.errors import FlowlessError
from flowless.train.models.options import MODELS
from flowless.train.recipes.dynamic_appearance import appearance_changes
from flowless.train.recipes.paper_views import view_changes
from flowless.train.recipes.recipe import Recipe

#: Training from scratch on small frames, so that Moving Shapes is learnt in minutes on two cores.
_SMALL: dict[str, Any] = {
    "width": 0.25,
    "pretrained": False,
    "size": 48,
    "short_side": 48,
    "schedule": "one-cycle",
    "optimiser": "adamw",
    "weight_decay": 0.05,
    "lr": 0.004,
    "lr_batch": 20,
    "batch_size": 20,
    "scales": (1.0,),
    "layer_rates": False,
    # Not the official 0.001: VAP's inputs are positive and nearly equal, and a step of AdamW is larger than such a weight. After 5 epochs
    # (1,600 Moving Shapes videos, 8 segments) all of its hidden units were dead, and every timescale kept the same weight.
    "head_std": 0.0,
}

#: Data set -> the fields that it changes (PAN, section V-A, and its official code).
_DATA: dict[str, dict[str, Any]] = {
    "something-v1": {},
    "kinetics400": {"flip": True, "sampling": "two-clip"},
    "ucf101": {"flip": True, "sampling": "two-clip", "epochs": 40, "steps": (15, 30)},
    "custom": {"epochs": 40, "steps": (15, 30), "batch_size": 16},
    "moving-shapes": {**_SMALL, "epochs": 5, "dropout": 0.2},
    "tiny": {**_SMALL, "epochs": 160, "batch_size": 14, "dropout": 0.0, "short_side": 56, "validate_every": 20},
}
#: Models that see one frame per segment are trained as PAN's official RGB branch: 50 epochs, steps at 20 and 40. (Inside PAN-Full and
#: PAN-En that branch has the longer schedule of the other branches; for the paper's, train it separately and use `flowless fuse`.)
_RGB: dict[str, Any] = {"epochs": 50, "steps": (20, 40)}
#: On UCF101 and HMDB51 all models take half of the epochs, and steps at half of them.
_RGB_SMALL: dict[str, Any] = {"epochs": 25, "steps": (10, 20)}
_ONE_FRAME = ("tsm", "tsn", "stm", "pan-rgb")
#: STM (section 4.2): batches of 64 clips of 8 frames (8 GPUs x 8), one learning rate for all layers. (For clips of 16 frames the paper
#: takes batches of 32 at the same rate: batch_size and lr_batch 32.) On UCF101 and HMDB51 it is fine-tuned from Kinetics weights.
_STM: dict[str, Any] = {"weight_decay": 5e-4, "layer_rates": False}
_STM_PUBLIC: dict[str, Any] = {"epochs": 70, "steps": (30, 40, 60)}
_STM_SMALL: dict[str, Any] = {"epochs": 50, "steps": (15, 30, 45), "lr": 0.001}
_PUBLIC = ("something-v1", "kinetics400")
#: Disentangling (its section 4.1): three segments, as in TSN, of eight frames; one learning rate for all layers. The paper counts
#: iterations of 256 clips, converted here to epochs: on Kinetics (240,436 videos) 110,000 iterations with steps every 40,000; on UCF101
#: (9,537 videos, first split) 18,000 with steps at 10,000 and 16,000. Weight decay and dropout are TSN's, whose practice the paper
#: follows. On UCF101 the paper trains the appearance branch separately, at 0.001 for 4,500 iterations with steps every 1,500; a recipe
#: has only one schedule, here that of the two other branches.
_DISENTANGLING: dict[str, Any] = {"segments": 3, "frames_per_segment": 8}
_CAFFE: dict[str, Any] = {"batch_size": 256, "lr_batch": 256, "layer_rates": False, "weight_decay": 5e-4, "dropout": 0.7}
_DISENTANGLING_DATA: dict[str, dict[str, Any]] = {
    "kinetics400": {**_CAFFE, "lr": 0.01, "epochs": 117, "steps": (43, 85)},
    "ucf101": {**_CAFFE, "lr": 0.005, "epochs": 483, "steps": (268, 430), "partial_bn": True},
}


def _changes(model: str, data: str) -> dict[str, Any]:
    """Return the fields that a model and a data set (not an alias) change from the defaults."""
    changes = dict(_DATA[data])
    family = model.rpartition("-")[0]
    if family in _ONE_FRAME:
        changes |= {"frames_per_segment": 1} | (_RGB if data in _PUBLIC else _RGB_SMALL if data == "ucf101" else {})
    if family == "stm" and data in (*_PUBLIC, "ucf101", "custom"):
        changes |= _STM | (_STM_PUBLIC if data in _PUBLIC else _STM_SMALL if data == "ucf101" else {})
    if family == "pan-en":
        changes["sampling"] = "two-clip"
    if family.startswith("da-"):
        changes |= appearance_changes(model, data)
    if family == "disentangling":
        changes |= _DISENTANGLING | _DISENTANGLING_DATA.get(data, {})
    return changes


#: Twins Training's augmentation (STM, section 4.2): corner crops, scales, flips, colour jitter and grey; the paper gives no numbers. Crops
#: and scales are in every recipe, and flips where the data set's recipe has them (elsewhere left and right are different actions). Jitter
#: and grey are those of Barlow Twins, whose loss Twins Training uses. Recipes without crops (Moving Shapes) get a second scale so large
#: that a crop still shows the whole action.
_TWINS: dict[str, Any] = {"colour_jitter": 0.4, "grey": 0.2}
_TWINS_SCALES = (1.0, 0.875)

#: Data set -> the data set whose settings it shares.
ALIASES = {"something-v2": "something-v1", "jester": "something-v1", "hmdb51": "ucf101"}
#: Data sets that recipes are named after.
DATA_NAMES = ("something-v1", "something-v2", "jester", "kinetics400", "ucf101", "hmdb51", "custom", "moving-shapes", "tiny")


def find_recipe(name: str, **changes: Any) -> Recipe:
    """Return a recipe by name, with fields changed.

    The objective `twins` also sets the augmentation of its paper, except for fields among `changes`.

    Args:
        name: MODEL/DATA, such as pan-lite-r50/something-v1.
        **changes: Field -> value; options of the model's family are fields too.

    Raises:
        FlowlessError: The name or a field is unknown, or a value is not allowed.
    """
    model, _, data = name.partition("/")
    if model not in MODELS or data not in DATA_NAMES:
        raise FlowlessError(
            f"no recipe {name!r}. A recipe is MODEL/DATA, such as pan-lite-r50/something-v1; models: {', '.join(MODELS)}; "
            f"data: {', '.join(DATA_NAMES)}. For your own videos, take /custom (fine-tuning) or /tiny (a handful of videos)."
        )
    defaults = _changes(model, ALIASES.get(data, data)) | view_changes(model, data)
    found = Recipe(name=name, model=model).changed(**defaults)
    if changes.get("objective") == "twins":
        changes = _TWINS | ({"scales": _TWINS_SCALES} if found.scales == (1.0,) else {}) | changes
    return found.changed(**changes)

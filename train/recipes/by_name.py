"""Recipes by name, `model/data set`: what a data set changes, and what a model changes on it. No heavy library is imported here."""

from __future__ import annotations

from typing import Any

from flowless.errors import FlowlessError
from flowless.train.models.options import MODELS
from flowless.train.recipes.appearance import appearance_changes
from flowless.train.recipes.recipe import Recipe
from flowless.train.recipes.views import view_changes

#: From scratch, on small frames: what Moving Shapes needs to be learnt in minutes on two cores.
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
    # Not the official 0.001: VAP's inputs are positive and nearly alike, and a step of AdamW is larger than such a weight, so that all of
    # its hidden units are dead after 5 epochs (1,600 Moving Shapes videos, 8 segments) and every timescale keeps the same weight.
    "head_std": 0.0,
}

#: Data set -> what it changes (paper, section V-A; spec of the official code).
_DATA: dict[str, dict[str, Any]] = {
    "something-v1": {},
    "kinetics400": {"flip": True, "sampling": "two-clip"},
    "ucf101": {"flip": True, "sampling": "two-clip", "epochs": 40, "steps": (15, 30)},
    "custom": {"epochs": 40, "steps": (15, 30), "batch_size": 16},
    "moving-shapes": {**_SMALL, "epochs": 5, "dropout": 0.2},
    "tiny": {**_SMALL, "epochs": 160, "batch_size": 14, "dropout": 0.0, "short_side": 56, "validate_every": 20},
}
#: What sees one frame a segment trains as the official RGB branch does: 50 epochs, steps at 20 and 40. (In PAN-Full and
#: PAN-En that branch learns with the others, by their longer schedule; train it apart and `flowless fuse` for the paper's.)
_RGB: dict[str, Any] = {"epochs": 50, "steps": (20, 40)}
#: On UCF101 and HMDB51 everything takes half of its epochs, steps included.
_RGB_SMALL: dict[str, Any] = {"epochs": 25, "steps": (10, 20)}
_ONE_FRAME = ("tsm", "tsn", "stm", "pan-rgb")
#: STM (section 4.2): batches of 64 clips of 8 frames (8 GPUs x 8), one rate for all layers. (Of 16 frames the paper takes 32
#: clips at the same rate: batch_size and lr_batch 32.) On UCF101 and HMDB51 it goes on from Kinetics.
_STM: dict[str, Any] = {"weight_decay": 5e-4, "layer_rates": False}
_STM_PUBLIC: dict[str, Any] = {"epochs": 70, "steps": (30, 40, 60)}
_STM_SMALL: dict[str, Any] = {"epochs": 50, "steps": (15, 30, 45), "lr": 0.001}
_PUBLIC = ("something-v1", "kinetics400")
#: Disentangling (its section 4.1): three segments, as TSN takes them, of eight frames. No rates by layer are told. What is told in
#: iterations of 256 clips is in epochs here: of 240,436 videos (Kinetics, 110,000, steps of 40,000) and of 9,537 (UCF101's first
#: split, 18,000, steps at 10,000 and 16,000). Weight decay and the share of dropout are TSN's, whose practices it follows.
#: On UCF101 the paper trains appearance apart, at 0.001 for 4,500 iterations with steps of 1,500; one recipe has one schedule,
#: which is that of the two other branches.
_DISENTANGLING: dict[str, Any] = {"segments": 3, "frames_per_segment": 8}
_CAFFE: dict[str, Any] = {"batch_size": 256, "lr_batch": 256, "layer_rates": False, "weight_decay": 5e-4, "dropout": 0.7}
_DISENTANGLING_DATA: dict[str, dict[str, Any]] = {
    "kinetics400": {**_CAFFE, "lr": 0.01, "epochs": 117, "steps": (43, 85)},
    "ucf101": {**_CAFFE, "lr": 0.005, "epochs": 483, "steps": (268, 430), "partial_bn": True},
}


def _changes(model: str, data: str) -> dict[str, Any]:
    """Return what a model and a data set, not an alias, change of the defaults."""
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


#: Twins Training's augmentation (STM, section 4.2): corner crops, scales, flips, jittered colours and grey; no number is given. Crops and
#: scales are every recipe's; it is flipped where the data set's recipe is, since elsewhere left and right are actions. The shares are those
#: of Barlow Twins, whose loss it takes. Where a recipe crops nothing (Moving Shapes), a crop still has to show the whole action.
_TWINS: dict[str, Any] = {"colour_jitter": 0.4, "grey": 0.2}
_TWINS_SCALES = (1.0, 0.875)

#: Data sets that are trained on as another one is.
ALIASES = {"something-v2": "something-v1", "jester": "something-v1", "hmdb51": "ucf101"}
#: Data sets that recipes are named after.
DATA_NAMES = ("something-v1", "something-v2", "jester", "kinetics400", "ucf101", "hmdb51", "custom", "moving-shapes", "tiny")


def find_recipe(name: str, **changes: Any) -> Recipe:
    """Return a recipe by name, with fields changed; raise FlowlessError, listing what there is, on an unknown name.

    The objective `twins` brings the paper's augmentation, where its fields are not among the changes.
    """
    model, _, data = name.partition("/")
    if model not in MODELS or data not in DATA_NAMES:
        raise FlowlessError(
            f"no recipe {name!r}. A recipe is MODEL/DATA, such as pan-lite-r50/something-v1; models: {', '.join(MODELS)}; "
            f"data: {', '.join(DATA_NAMES)}. For data of your own, take /custom (fine-tuning) or /tiny (a handful of videos)."
        )
    usual = _changes(model, ALIASES.get(data, data)) | view_changes(model, data)
    found = Recipe(name=name, model=model).changed(**usual)
    if changes.get("objective") == "twins":
        changes = _TWINS | ({"scales": _TWINS_SCALES} if found.scales == (1.0,) else {}) | changes
    return found.changed(**changes)

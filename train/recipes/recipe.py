"""A recipe: all settings of a training. No heavy library is imported here."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from flowless.errors import FlowlessError
from flowless.train.models.options import OPTIONS, FamilyOptions, family_of, option_names, options_for, split_options
from flowless.train.recipes.data_fields import DataFields
from flowless.train.recipes.training_fields import TrainingFields

#: A field's type -> what its value must be, for messages.
_DESCRIPTIONS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple[int, ...]: "a tuple of whole numbers",
    tuple[float, ...]: "a tuple of numbers",
    dict[str, str]: "a dictionary of text",
    NoneType: "None",
    FamilyOptions: "the options of a family",
}
#: Names of fields, the check of their value, and the check as text.
_RULES: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (("epochs", "batch_size", "accumulate", "lr_batch", "validate_every", "num_nodes"), lambda x: x >= 1, "at least 1"),
    (("threads",), lambda x: x is None or x >= 1, "at least 1"),
    (("lr",), lambda x: 0 < x < math.inf, "above 0"),
    (("momentum", "label_smoothing", "dropout"), lambda x: 0 <= x < 1, "in [0, 1)"),
    (("weight_decay", "clip_gradient", "seed", "head_decay", "keep_every"), lambda x: 0 <= x < math.inf, "at least 0"),
    (("twins_lambda", "twins_beta", "head_std"), lambda x: 0 <= x < math.inf, "at least 0"),
    (("warm_up",), lambda x: 0 <= x < 1, "at least 0 and below 1"),
    (("step_factor", "max_bad_share", "colour_jitter", "grey"), lambda x: 0 <= x <= 1, "in [0, 1]"),
    (("scales",), lambda x: len(x) > 0 and all(0 < scale <= 1 for scale in x), "numbers in (0, 1]"),
)

#: Fields that may change when a run is resumed: where it runs, where its weights come from, and how the model is tested.
_NOT_TRAINED = {
    *("threads", "accelerator", "devices", "num_nodes", "max_bad_share"),
    *("pretrained_path", "start_from", "keep_every", "average", "test_views"),
}
#: Values of fields that files of earlier versions do not have: what those versions did.
_EARLIER: dict[str, Any] = {"head_std": 0.0}


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingFields, DataFields):
    """All settings of a training: those of every training, those of the data, and the options of the model's family.

    Every field can be overridden on the command line.
    """

    name: tyro.conf.Suppress[str] = "custom"
    """The recipe's name, MODEL/DATA."""
    model: tyro.conf.Suppress[str] = "pan-lite-r50"
    """A family and its backbone, one of `flowless.train.models.MODELS`."""
    options: Annotated[tyro.conf.OmitArgPrefixes[FamilyOptions], tyro.conf.arg(name="model", prefix_name=False)] = None  # type: ignore[assignment]
    """The options of the model's family; default: the family's defaults."""
    width: float = 1.0
    """Factor on the backbone's channels; 0.25 gives a ResNet with 16, 32, 64, 128."""
    blocks: int = 0
    """Depth of the backbone. ResNets, X3D: residual blocks per stage; BN-Inception: modules per stage; ViT: blocks in all. 1 gives the
    smallest network, 0 the depth that the model's name says."""
    dropout: float = 0.5
    """Dropout probability before the last layer."""
    head_std: float = 0.001
    """Standard deviation of the head's initial weights, VAP's small network included (official code: 0.001). 0: PyTorch's default
    initialisation."""
    pretrained: bool = True
    """Start from ImageNet weights, which timm downloads or finds in its cache."""
    pretrained_path: str | None = None
    """Start from ImageNet weights in this file instead, such as on a machine without a network."""
    weights: str = ""
    """Which ImageNet weights, by timm's tag, such as a1_in1k. Default: those of the papers, torchvision's (tv_in1k) for ResNets and
    augreg_in21k for ViT. Pixels are normalised with the mean and standard deviation that these weights were trained with."""
    start_from: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Start from a checkpoint of flowless, such as runs/kinetics/best.safetensors. Every tensor that fits is copied, and those that do not
    are listed; where the labels differ, the classifier is new."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with: all problems in one error."""
        if self.options is None:
            object.__setattr__(self, "options", OPTIONS[family_of(self.model)]())
        wanted = {name: _described(hint) for name, hint in get_type_hints(type(self)).items() if not _is_of_type(getattr(self, name), hint)}
        for names, good, allowed in _RULES:
            wanted |= {name: allowed for name in names if name not in wanted and not good(getattr(self, name))}
        problems = [f"{name} is {getattr(self, name)!r}; it must be {allowed}" for name, allowed in wanted.items()]
        if type(self.options) is not OPTIONS[family_of(self.model)]:
            problems.append(f"options are {type(self.options).__name__}; {self.model} takes {OPTIONS[family_of(self.model)].__name__}")
        if self.start_from is not None and self.pretrained_path is not None:
            problems.append("a checkpoint to start from (--from) and pretrained_path are both given; give only one of them")
        if self.weights and (self.start_from or not (self.pretrained or self.pretrained_path)):
            problems.append(
                f"weights is {self.weights!r}, but training does not start from ImageNet weights; leave it out, or set pretrained"
            )
        if not {"batch_size", "accumulate"} & wanted.keys() and self.batch_size % self.accumulate:
            problems.append(f"accumulate is {self.accumulate}; it must divide batch_size, {self.batch_size}")
        if problems:
            raise FlowlessError(f"recipe {self.name}: " + "; ".join(problems) + ".")

    def changed(self, **changes: Any) -> Recipe:
        """Return the recipe with fields changed; options of the model's family count as fields, and a file may be given as a `Path`.

        Raises:
            FlowlessError: A field is unknown or not an option of this family, or its value is not allowed.
        """
        own = {item.name for item in fields(self)} - {"options"}
        family = {name: value for name, value in changes.items() if name not in own}
        unknown = sorted(set(family) - option_names())
        if unknown:
            raise FlowlessError(f"recipe {self.name}: has no field {', '.join(unknown)}. See: flowless train {self.name} --help")
        options = options_for(self.model, {**vars(self.options), **family})
        values = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in changes.items() if name in own}
        return replace(self, options=options, **values)

    def differences(self, other: Recipe) -> list[str]:
        """Return the fields in which two recipes train differently, as `field this → other`; fields such as `threads` do not count."""
        ours, others = self.to_dict(), other.to_dict()
        names = [name for name in {**ours, **others} if name not in _NOT_TRAINED]
        return [f"{name} {ours.get(name)!r} → {others.get(name)!r}" for name in names if ours.get(name) != others.get(name)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint or a JSON file; the family's options are entries like all other fields."""
        values = {item.name: getattr(self, item.name) for item in fields(self)} | vars(self.options)
        del values["options"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Recipe:
        """Read the output of `to_dict`, of this version or an earlier one; raise FlowlessError on an unknown field."""
        model = document.get("model", cls.model)
        family, rest = split_options(model, {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()})
        unknown = sorted(set(rest) - {item.name for item in fields(cls)} | set(rest) & {"options"})
        if unknown:
            raise FlowlessError(f"recipe: unknown fields {', '.join(unknown)}. It was written by another version of flowless.")
        return cls(**{**_EARLIER, **rest}, options=options_for(model, family))


def _is_of_type(value: Any, hint: Any) -> bool:
    """Return whether a value and its elements are of a field's type; a whole number is a number too, but a bool is neither."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in {Union, UnionType}:
        return any(_is_of_type(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is tuple:
        return isinstance(value, tuple | list) and all(_is_of_type(item, parts[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(_is_of_type(key, parts[0]) and _is_of_type(item, parts[1]) for key, item in value.items())
    types = (int, float) if kind is float else kind
    return isinstance(value, types) and (kind is bool or not isinstance(value, bool))


def _described(hint: Any) -> str:
    """Return what a value of a field's type must be."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return _DESCRIPTIONS[hint] if hint in _DESCRIPTIONS else " or ".join(_described(part) for part in reversed(get_args(hint)))

"""Read checkpoints of the official PAN code into recognisers of flowless, with the same weights and the same scores.

The official code saves `epoch`, `arch`, `state_dict`, `optimizer` and `best_prec1`. Its networks equal ours, with other names of
tensors; only the place of eps inside PA differs, which the option `eps_inside` reproduces.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import Recognizer, build_model
from flowless.train.models.backbones.weight_files import read_document


@dataclass(frozen=True, kw_only=True)
class OfficialModel:
    """One of the models that the official code trains."""

    family: str
    """Its family here."""
    channels: int
    """Input channels of its first convolution."""
    frames: int
    """Frames m of a segment."""


#: Name on the command line -> model.
OFFICIAL_MODELS = {
    "pan-lite": OfficialModel(family="pan-lite", channels=6, frames=4),
    "pan-full-rgb": OfficialModel(family="pan-rgb", channels=3, frames=1),
    "pan-full-pa": OfficialModel(family="pan-pa", channels=3, frames=4),
}
#: Official prefix of a tensor's name -> ours; the first match counts.
_PREFIXES = (("base_model.fc.", "head."), ("base_model.", "backbone."), ("PA.shallow_conv.", "persistence."))
#: Numbers of blocks of layer1 to layer4, and whether a block has three convolutions -> depth.
_DEPTHS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "r18",
    ((3, 4, 6, 3), False): "r34",
    ((3, 4, 6, 3), True): "r50",
    ((3, 4, 23, 3), True): "r101",
}


class OfficialFrames(nn.Module):
    """A recogniser with the input of the official code: normalised frames instead of pixels.

    Attributes:
        recognizer: The recogniser, which takes uint8 pixels.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(self, x: Tensor) -> Tensor:
        """Recognise frames as the official code normalises them.

        Args:
            x: Floating `[B, N, m, 3, H, W]`: RGB from 0 to 1, less the ClipSpec's mean, over its standard deviation. (The
                official `[B, N*m*3, H, W]` is the same memory.)

        Returns:
            Scores `[B, classes]`, the official logits.
        """
        segments, frames, *_ = self.recognizer.spec.shape
        if not x.is_floating_point() or x.dim() != 6 or tuple(x.shape[1:4]) != (segments, frames, 3):
            raise FlowlessError(
                f"the frames are {str(x.dtype).removeprefix('torch.')} {list(x.shape)}; this model takes normalised frames, floating "
                f"[B, {segments}, {frames}, 3, H, W] (clip, segments, frames, RGB, rows, columns). For pixels, call its `recognizer`."
            )
        return self.recognizer.forward_frames(x)


@dataclass(frozen=True, kw_only=True)
class OfficialCheckpoint:
    """The contents of an official checkpoint."""

    model: Recognizer
    """A recogniser with the file's weights, in evaluation mode."""
    name: str
    """Its name for `build_model`."""
    spec: ClipSpec
    """8 x 4 (RGB: 8 x 1) frames, crops of 224 x 224 from a short side of 256; the weights may have other segments than 8."""
    classes: int
    metrics: dict[str, Any]
    """Epoch and best validation top-1 (0 to 1), where the file has them."""


def load_official(path: str | os.PathLike[str], *, model: str) -> tuple[nn.Module, ClipSpec]:
    """Read a checkpoint of the official PAN code (zhang-can/PAN-PyTorch, `ckpt.pth.tar` or `ckpt.best.pth.tar`).

    The depth of the ResNet and the numbers of segments and classes are found in the weights. Only tensors and plain values are
    unpickled. Files of PyTorch before 1.6 and tensors saved on a GPU are read too.

    Args:
        path: The file.
        model: pan-lite, pan-full-rgb or pan-full-pa: the official code's modalities Lite, RGB and PA.

    Returns:
        A module in evaluation mode that takes the official input, normalised floating `[B, N, m, 3, H, W]` (m: 4; RGB: 1),
        and returns the official logits `[B, classes]`; its attribute `recognizer` takes uint8 pixels. And the ClipSpec.

    Raises:
        FlowlessError: The file is missing or damaged, or not a checkpoint of that model.
    """
    found = read_official(path, model=model)
    return OfficialFrames(found.model).eval(), found.spec


def read_official(path: str | os.PathLike[str], *, model: str) -> OfficialCheckpoint:
    """Read an official checkpoint into a recogniser; see `load_official`."""
    if model not in OFFICIAL_MODELS:
        raise FlowlessError(f"model is {model!r}; an official checkpoint is one of {', '.join(OFFICIAL_MODELS)}.")
    source = Path(path)
    document = read_document(source)
    weights = _weights(document, source)
    kind = _kind(weights, source)
    if kind != model:
        raise FlowlessError(f"{source}: holds the weights of {kind}, not of {model}. Import it with --model {kind}.")
    segments, classes = _segments_and_classes(weights, source)
    spec = ClipSpec(segments=segments, frames_per_segment=OFFICIAL_MODELS[model].frames)
    name = f"{OFFICIAL_MODELS[model].family}-{_depth(weights, source)}"
    official: dict[str, Any] = {"eps_inside": True} if "PA.shallow_conv.weight" in weights else {}
    recognizer = build_model(name, classes=classes, spec=spec, **official)
    _fill(recognizer, weights, source)
    return OfficialCheckpoint(model=recognizer.eval(), name=name, spec=spec, classes=classes, metrics=_metrics(document))


def _weights(document: Any, source: Path) -> dict[str, Tensor]:
    """Return the official tensors by name, without the prefix `module.` of DataParallel."""
    table = document.get("state_dict", document) if isinstance(document, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(value, Tensor) for value in table.values()):
        raise FlowlessError(f"{source}: not a checkpoint of the official PAN code: it has no `state_dict` of named tensors.")
    weights = {str(name).removeprefix("module."): value for name, value in table.items()}
    if "base_model.conv1.weight" not in weights:
        shown = ", ".join(list(weights)[:3])
        raise FlowlessError(
            f"{source}: not a checkpoint of the official PAN code with a ResNet: it has no base_model.conv1.weight (its first tensors are "
            f"{shown}). A checkpoint of flowless needs no import."
        )
    return weights


def _kind(weights: dict[str, Tensor], source: Path) -> str:
    """Return which of the official models the weights are of, by PA's filters and the channels of the first convolution."""
    channels = weights["base_model.conv1.weight"].shape[1]
    motion = "PA.shallow_conv.weight" in weights
    for name, model in OFFICIAL_MODELS.items():
        if channels == model.channels and motion == (model.frames > 1):
            return name
    raise FlowlessError(
        f"{source}: its first convolution takes {channels} channels and it has {'PA filters' if motion else 'no PA filters'}; flowless "
        f"imports Lite (6 channels, PA), PA (3, PA) and RGB (3, no PA), the modalities of the paper's models."
    )


def _segments_and_classes(weights: dict[str, Tensor], source: Path) -> tuple[int, int]:
    """Return the numbers of segments and classes, from the shapes of the head."""
    scales, prediction = weights.get("base_model.fc.TES.0.weight"), weights.get("base_model.fc.pred.weight")
    if scales is None or prediction is None or scales.dim() != 2 or prediction.dim() != 2:
        raise FlowlessError(
            f"{source}: was trained without VAP (it has no base_model.fc.TES and base_model.fc.pred); the paper's models have it. Train "
            f"with the official option --VAP, or train tsm-r50 here."
        )
    # VAP's small network has one input per pooled vector, N - 1 for N segments.
    return scales.shape[1] + 1, prediction.shape[0]


def _depth(weights: dict[str, Tensor], source: Path) -> str:
    blocks = {match.groups() for name in weights if (match := re.match(r"base_model\.layer([1-4])\.(\d+)\.", name))}
    counts = tuple(sum(layer == str(number) for layer, _ in blocks) for number in (1, 2, 3, 4))
    bottleneck = "base_model.layer1.0.conv3.weight" in weights
    depth = _DEPTHS.get((counts, bottleneck))
    if depth is None:
        raise FlowlessError(
            f"{source}: a ResNet with {' + '.join(map(str, counts))} blocks of {3 if bottleneck else 2} convolutions; flowless has "
            f"ResNet-18, -34, -50 and -101."
        )
    if "base_model.layer1.0.conv1.net.weight" not in weights:
        raise FlowlessError(f"{source}: was trained without the temporal shift (--shift); the paper's models have it.")
    return depth


def _fill(model: Recognizer, weights: dict[str, Tensor], source: Path) -> None:
    own = model.state_dict()
    given = {_ours(name): (name, value) for name, value in weights.items()}
    # PyTorch before 0.4.1 did not save num_batches_tracked, and nothing depends on it.
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unknown = [name for ours, (name, _) in given.items() if ours not in own]
    shapes = [
        f"{name} {list(value.shape)} instead of {list(own[ours].shape)}"
        for ours, (name, value) in given.items()
        if ours in own and own[ours].shape != value.shape
    ]
    problems = {"missing": missing, "unknown": unknown, "other shapes": shapes}
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}" for what, names in problems.items() if names
        )
        raise FlowlessError(
            f"{source}: its tensors are not those of the official network ({listed}). Import only files of the unchanged official code."
        )
    with torch.no_grad():
        model.load_state_dict({name: value for name, (_, value) in given.items()}, strict=False)


def _ours(name: str) -> str:
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _metrics(document: dict[str, Any]) -> dict[str, Any]:
    """Return the epoch and the best top-1 (0 to 1), where the file has them."""
    found = {}
    if isinstance(document.get("epoch"), int):
        found["epoch"] = document["epoch"]
    if isinstance(best := document.get("best_prec1"), float | int):
        found["best_top1"] = best / 100
    return found

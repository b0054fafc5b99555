"""Checkpoints of the official PAN code, read into our recognisers: the same weights, the same scores.

The official code saves `epoch`, `arch`, `state_dict`, `optimizer` and `best_prec1`. Its networks are ours by other names;
what differs is the place of eps inside PA, which `eps_inside` keeps.
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
from flowless.train.models.backbones.backbone import read_document

#: Name on the command line -> our family, channels of the first convolution, frames m of a segment.
OFFICIAL_MODELS = {"pan-lite": ("pan-lite", 6, 4), "pan-full-rgb": ("pan-rgb", 3, 1), "pan-full-pa": ("pan-pa", 3, 4)}
#: Official beginning of a name -> ours; the first that fits.
_NAMES = (("base_model.fc.", "head."), ("base_model.", "backbone."), ("PA.shallow_conv.", "persistence."))
#: Blocks of layer1 to layer4, and whether a block has three convolutions -> depth.
_DEPTHS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "r18",
    ((3, 4, 6, 3), False): "r34",
    ((3, 4, 6, 3), True): "r50",
    ((3, 4, 23, 3), True): "r101",
}


class OfficialFrames(nn.Module):
    """A recogniser called as the official code calls its own: normalised frames in, scores out.

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
                f"[B, {segments}, {frames}, 3, H, W] (clip, segments, frames, RGB, rows, columns). Pixels go to its recognizer."
            )
        return self.recognizer.forward_frames(x)


@dataclass(frozen=True, kw_only=True)
class OfficialCheckpoint:
    """What an official file held."""

    model: Recognizer
    """Our recogniser with its weights, in evaluation mode."""
    name: str
    """Its name for `build_model`."""
    spec: ClipSpec
    """8 x 4 (RGB: 8 x 1) frames of 224 x 224 out of 256, unless the weights say other segments."""
    classes: int
    metrics: dict[str, Any]
    """Epoch and validation top-1 (0 to 1) that the file names."""


def load_official(path: str | os.PathLike[str], *, model: str) -> tuple[nn.Module, ClipSpec]:
    """Read a checkpoint of the official PAN code (zhang-can/PAN-PyTorch, `ckpt.pth.tar` or `ckpt.best.pth.tar`).

    The depth of the ResNet, the segments and the classes are found in the weights. Nothing is unpickled but tensors and
    plain values; files of PyTorch before 1.6 and tensors that lay on a GPU are read too.

    Args:
        path: The file.
        model: pan-lite, pan-full-rgb or pan-full-pa: what the official code calls modality Lite, RGB and PA.

    Returns:
        A module in evaluation mode that takes the official input, normalised floating `[B, N, m, 3, H, W]` (m: 4; RGB: 1),
        and gives the official logits `[B, classes]`; its attribute `recognizer` takes uint8 pixels. And the ClipSpec.

    Raises:
        FlowlessError: The file is missing or damaged, or is no checkpoint of that model.
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
    family, _, frames = OFFICIAL_MODELS[model]
    kind = _kind(weights, source)
    if kind != model:
        raise FlowlessError(f"{source}: holds the weights of {kind}, not of {model}. Import it with --model {kind}.")
    segments, classes = _head(weights, source)
    spec = ClipSpec(segments=segments, frames_per_segment=frames)
    name = f"{family}-{_depth(weights, source)}"
    official: dict[str, Any] = {"eps_inside": True} if "PA.shallow_conv.weight" in weights else {}
    recognizer = build_model(name, classes=classes, spec=spec, **official)
    _fill(recognizer, weights, source)
    return OfficialCheckpoint(model=recognizer.eval(), name=name, spec=spec, classes=classes, metrics=_metrics(document))


def _weights(document: Any, source: Path) -> dict[str, Tensor]:
    """Return the official tensors by their names without `module.`, which DataParallel puts before them."""
    table = document.get("state_dict", document) if isinstance(document, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(value, Tensor) for value in table.values()):
        raise FlowlessError(f"{source}: no checkpoint of the official PAN code: it holds no table `state_dict` of named tensors.")
    weights = {str(name).removeprefix("module."): value for name, value in table.items()}
    if "base_model.conv1.weight" not in weights:
        shown = ", ".join(list(weights)[:3])
        raise FlowlessError(
            f"{source}: no checkpoint of the official PAN code over a ResNet: it has no base_model.conv1.weight (its names begin with "
            f"{shown}). A checkpoint of flowless needs no import."
        )
    return weights


def _kind(weights: dict[str, Tensor], source: Path) -> str:
    """Tell which of the official models the weights are, by PA's filters and the channels of the first convolution."""
    channels = weights["base_model.conv1.weight"].shape[1]
    motion = "PA.shallow_conv.weight" in weights
    for name, (_, expected, frames) in OFFICIAL_MODELS.items():
        if channels == expected and motion == (frames > 1):
            return name
    raise FlowlessError(
        f"{source}: its first convolution takes {channels} channels and it has {'PA filters' if motion else 'no PA filters'}; flowless "
        f"imports Lite (6 channels, PA), PA (3, PA) and RGB (3, no PA), the modalities of the paper's models."
    )


def _head(weights: dict[str, Tensor], source: Path) -> tuple[int, int]:
    """Return segments and classes."""
    scales, prediction = weights.get("base_model.fc.TES.0.weight"), weights.get("base_model.fc.pred.weight")
    if scales is None or prediction is None or scales.dim() != 2 or prediction.dim() != 2:
        raise FlowlessError(
            f"{source}: was trained without VAP (it has no base_model.fc.TES and base_model.fc.pred); the paper's models have it. Train "
            f"with the official option --VAP, or train tsm-r50 here."
        )
    # N - 1 pooled vectors of N segments.
    return scales.shape[1] + 1, prediction.shape[0]


def _depth(weights: dict[str, Tensor], source: Path) -> str:
    blocks = {match.groups() for name in weights if (match := re.match(r"base_model\.layer([1-4])\.(\d+)\.", name))}
    counts = tuple(sum(layer == str(number) for layer, _ in blocks) for number in (1, 2, 3, 4))
    bottleneck = "base_model.layer1.0.conv3.weight" in weights
    depth = _DEPTHS.get((counts, bottleneck))
    if depth is None:
        raise FlowlessError(
            f"{source}: a ResNet of {' + '.join(map(str, counts))} blocks of {3 if bottleneck else 2} convolutions, which flowless does "
            f"not build. It has ResNet-18, -34, -50 and -101."
        )
    if "base_model.layer1.0.conv1.net.weight" not in weights:
        raise FlowlessError(f"{source}: was trained without the temporal shift (--shift); the paper's models have it.")
    return depth


def _fill(model: Recognizer, weights: dict[str, Tensor], source: Path) -> None:
    own = model.state_dict()
    given = {_ours(name): (name, value) for name, value in weights.items()}
    # PyTorch before 0.4.1 did not count batches, and nothing depends on the count.
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unknown = [name for ours, (name, _) in given.items() if ours not in own]
    shapes = [
        f"{name} {list(value.shape)} instead of {list(own[ours].shape)}"
        for ours, (name, value) in given.items()
        if ours in own and own[ours].shape != value.shape
    ]
    problems = {"missing": missing, "unknown": unknown, "other shapes": shapes}
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}" for what, names in problems.items() if names
        )
        raise FlowlessError(
            f"{source}: its tensors are not those of the official network ({told}). Was it saved by unchanged official code?"
        )
    with torch.no_grad():
        model.load_state_dict({name: value for name, (_, value) in given.items()}, strict=False)


def _ours(name: str) -> str:
    for theirs, ours in _NAMES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _metrics(document: dict[str, Any]) -> dict[str, Any]:
    """Return the epoch and the best top-1 as a share, where the file names them."""
    found = {}
    if isinstance(document.get("epoch"), int):
        found["epoch"] = document["epoch"]
    if isinstance(best := document.get("best_prec1"), float | int):
        found["best_top1"] = best / 100
    return found

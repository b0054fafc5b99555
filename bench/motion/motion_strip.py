"""The picture of every motion cue beside optical flow: a row a cue, a column a moment of a real video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flowless.bench.motion.motion_cues import STEPS, cue_of_model, fit_projection, random_cues
from flowless.bench.motion.motion_flows import flows_of, grey, opencv_flows
from flowless.errors import FlowlessError
from flowless.export.explain.cue_pictures import font, paint, reach_of, resized, wheel
from flowless.export.explain.cues import Cue, Kind
from flowless.files import whole_file
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.layers.displacement import WINDOW

if TYPE_CHECKING:
    from torch import nn

    from flowless.train.checkpoints import Checkpoint

#: Our rows, from top to bottom: cue, what its values are, and what is seen in it.
_CUES: tuple[tuple[str, Kind, str], ...] = (
    ("PA", "map", "how much shallow features change"),
    ("displacement map", "flow", "where features go"),
    ("dynamic appearance", "colour", "what does not stand still"),
    ("CMM", "map", "how much reduced features change"),
)
_FLOWS = ("TV-L1", "Farneback", "DIS medium")
#: Places in a video that a moment is chosen from.
_CANDIDATES = 24
#: Pixels: a tile's side, the gap between tiles, between videos, and the columns of the labels.
_TILE, _GAP, _PART, _LABELS, _EDGE = 160, 4, 14, 226, 16
_INK, _PALE, _LINE, _PAPER = (34, 48, 58), (104, 118, 128), (214, 221, 226), (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the picture."""

    name: str
    told: tuple[str, ...]
    """Lines under the name."""
    tiles: NDArray[np.uint8] | None
    """uint8 `[columns, h, w, 3]`; None where the method is not here."""


def load_cues(checkpoints: Sequence[Path]) -> dict[str, Checkpoint]:
    """Load trained models, and return each by the cue that it has.

    Raises:
        FlowlessError: A file is no checkpoint, its model has no motion cue, or two have the same.
    """
    from flowless.train.checkpoints import load_checkpoint

    found: dict[str, Checkpoint] = {}
    for path in checkpoints:
        loaded = load_checkpoint(path)
        try:
            name = cue_of_model(loaded.model, spec=loaded.spec)[0]
        except FlowlessError as error:
            raise FlowlessError(f"{path}: {error}") from error
        if name in found:
            raise FlowlessError(f"{path}: {loaded.name} has the cue {name}, as {found[name].name} has. Give one checkpoint for each cue.")
        found[name] = loaded
    return found


def write_strip(
    path: Path,
    videos: Sequence[Path],
    *,
    cues: Mapping[str, Checkpoint],
    spec: ClipSpec,
    rates: Mapping[str, tuple[float, str]],
    moments: int,
) -> dict[str, Any]:
    """Draw every cue of the moments of some videos that move most.

    Args:
        path: The `.jpg` to write, whole or not at all.
        videos: One group of columns each.
        cues: Cue -> the trained model to take it from; the others have random weights.
        spec: Size and preprocessing of the frames.
        rates: Method -> maps a second and what made them, for the labels.
        moments: Columns of each video.

    Returns:
        What was drawn: `videos`, `weights` of each cue, and `full_colour_pixels`, the displacement of the wheel's edge.
    """
    modules, weights, longest = _modules(cues, spec)
    stacks = np.concatenate([_moving(video, spec, frames=longest, moments=moments) for video in videos])
    if "dynamic appearance" not in cues:
        fit_projection(modules["dynamic appearance"][0], stacks)
        weights["dynamic appearance"] = f"fitted to these frames by its own loss, {STEPS} steps"
    rows, reach = _rows(stacks, modules, weights, rates)
    picture = _laid_out(rows, [video.stem for video in videos], moments=moments, reach=reach)
    with whole_file(path) as draft:
        picture.save(draft, format="jpeg", quality=90, subsampling=0, optimize=True)
    return {"videos": [video.name for video in videos], "weights": weights, "full_colour_pixels": round(reach, 2)}


def _modules(cues: Mapping[str, Checkpoint], spec: ClipSpec) -> tuple[dict[str, tuple[nn.Module, int]], dict[str, str], int]:
    """Return each cue's module with the frames that it takes, what its weights are, and the most frames that one takes."""
    stack = ClipSpec(
        segments=1, frames_per_segment=spec.frames_per_segment, height=spec.height, width=spec.width, short_side=spec.short_side
    )
    modules = {name: (module, stack.frames_per_segment) for name, module in random_cues(stack).items()}
    weights = dict.fromkeys(modules, "random weights")
    for name, loaded in cues.items():
        module = cue_of_model(loaded.model, spec=stack)[1]
        frames = getattr(getattr(loaded.model, "projection", None), "frames", stack.frames_per_segment)
        modules[name] = module.eval(), frames
        weights[name] = f"trained, {loaded.name}"
    return modules, weights, max(frames for _, frames in modules.values())


def _moving(video: Path, spec: ClipSpec, *, frames: int, moments: int) -> NDArray[np.uint8]:
    """Return a stack of adjacent frames from each part of a video, where it moves most: uint8 `[moments, frames, H, W, 3]`."""
    per_part = max(1, _CANDIDATES // moments)
    look = ClipSpec(
        segments=per_part * moments, frames_per_segment=frames, height=spec.height, width=spec.width, short_side=spec.short_side
    )
    stacks = load_clip(video, look)[0]
    middle = (frames - 1) // 2
    moved = np.abs(np.subtract(stacks[:, middle], stacks[:, middle + 1], dtype=np.int16)).mean((1, 2, 3)).reshape(moments, per_part)
    return stacks[moved.argmax(1) + per_part * np.arange(moments)]


def _rows(
    stacks: NDArray[np.uint8],
    modules: Mapping[str, tuple[nn.Module, int]],
    weights: Mapping[str, str],
    rates: Mapping[str, tuple[float, str]],
) -> tuple[list[Row], float]:
    """Compute and paint all rows; also return the displacement in pixels that has the fullest colour."""
    middle = (stacks.shape[1] - 1) // 2
    found = {name: _cue(name, kind, modules[name], stacks) for name, kind, _ in _CUES}
    pairs = grey(stacks[:, middle : middle + 2])[None]
    flows = {flow.name: flow for flow in opencv_flows() if flow.name in _FLOWS}
    for name in _FLOWS:
        if pair := flows[name].pair:
            found[name] = _as_cue(name, "flow", flows_of(pair, pairs)[0])
    # No displacement map reaches further than its window; what is quicker gets the fullest colour too.
    window = 2.0 * WINDOW
    reach = min([window, *(reach_of(found[name]) for name in _FLOWS if name in found)])
    rows = [Row(name="frame", told=("the first of two adjacent",), tiles=stacks[:, middle])]
    for name, _, meaning in _CUES:
        told = (meaning, *_rate(rates.get(name), "pictures" if name == "dynamic appearance" else "maps"), weights[name])
        rows.append(Row(name=name, told=told, tiles=_painted(found[name], reach)))
    for name in _FLOWS:
        told = (*_rate(rates.get(name), "maps"), "optical flow") if name in found else (flows[name].status,)
        rows.append(Row(name=name, told=told, tiles=_painted(found[name], reach) if name in found else None))
    return rows, reach


def _cue(name: str, kind: Kind, module: tuple[nn.Module, int], stacks: NDArray[np.uint8]) -> Cue:
    """Return a cue of the middle pair of each stack, or of as many frames around it as dynamic appearance takes."""
    network, frames = module
    middle = (stacks.shape[1] - 1) // 2
    start = middle - (frames - 1) // 2
    values = []
    with torch.inference_mode():
        for stack in stacks[:, start : start + frames]:
            found = network(torch.from_numpy(stack[None, None])).float()
            if name == "PA":
                values.append(found[0, 0, middle - start])
            elif name == "dynamic appearance":
                values.append(found[0, 0])
            elif name == "CMM":
                values.append(torch.linalg.vector_norm(found[0, middle - start], dim=0))
            else:  # cells of a coarser grid become pixels
                values.append(found[0, middle - start] * (stack.shape[1] / found.shape[-2]))
    return _as_cue(name, kind, torch.stack(values).numpy())


def _as_cue(name: str, kind: Kind, values: NDArray[np.float32]) -> Cue:
    return Cue(name=name, kind=kind, over="frames", values=values[None, :, None], meaning="")


def _painted(cue: Cue, reach: float) -> NDArray[np.uint8]:
    return paint(cue, reach=reach if cue.kind == "flow" else None)[0, :, 0]


def _rate(rate: tuple[float, str] | None, unit: str) -> tuple[str, ...]:
    if rate is None:
        return ()
    value = f"{rate[0]:,.0f}".replace(",", " ") if rate[0] >= 20 else f"{rate[0]:.1f}"
    return (f"{value} {unit}/s, {rate[1]}",)


def _laid_out(rows: Sequence[Row], videos: Sequence[str], *, moments: int, reach: float) -> Image.Image:
    """Put rows, labels, the videos' names and the wheel of directions on one page."""
    columns = len(videos) * moments
    lefts = [_EDGE + _LABELS + place * (_TILE + _GAP) + place // moments * _PART for place in range(columns)]
    top = _EDGE + 26
    size = (lefts[-1] + _TILE + _EDGE, top + len(rows) * (_TILE + _GAP) + 76)
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    bold, plain, small = font(17, bold=True), font(15), font(12)
    for place, video in enumerate(videos):
        draw.text((lefts[place * moments], _EDGE - 2), video, font=plain, fill=_INK)
    for number, row in enumerate(rows):
        y = top + number * (_TILE + _GAP)
        draw.text((_EDGE, y + 34), row.name, font=bold, fill=_INK)
        lines = [part for line in row.told for part in _wrapped(line, small, _LABELS - 12)]
        for place, line in enumerate(lines):
            draw.text((_EDGE, y + 60 + 17 * place), line, font=small, fill=_PALE)
        if row.tiles is None:
            continue
        for left, tile in zip(lefts, resized(row.tiles, height=_TILE, width=_TILE), strict=True):
            page.paste(Image.fromarray(tile), (left, y))
            draw.rectangle((left, y, left + _TILE - 1, y + _TILE - 1), outline=_LINE)
    y = top + len(rows) * (_TILE + _GAP) + 6
    disc = Image.fromarray(wheel(56), mode="RGBA")
    page.paste(disc, (lefts[0], y), disc)
    told = (
        f"direction of motion, from a frame to the next; full colour: {reach:.1f} pixels or more",
        "brightness of PA and CMM, and contrast of dynamic appearance, reach to the largest values of their rows",
        "speeds: each way's quickest engine, full size, all on the same frames and cores",
    )
    for place, line in enumerate(told):
        draw.text((lefts[0] + 68, y + 2 + 18 * place), line, font=small, fill=_PALE)
    return page


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines

"""The picture of every motion cue beside optical flow: a row a method, a column a moment of a video."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowless import plots
from flowless.bench.motion.motion_methods import opencv_flows
from flowless.errors import FlowlessError
from flowless.export.explain.cue_pictures import paint, reach_of, wheel
from flowless.export.explain.cues import Cue, cue_of
from flowless.files import whole_file
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import load_checkpoint
from flowless.train.models import Recognizer
from flowless.train.models.layers.displacement import WINDOW

if TYPE_CHECKING:
    from flowless.train.checkpoints import Checkpoint

#: Cue -> its name in the benchmark, and what is seen in it.
_CUES = {
    "Persistence of Appearance": ("PA", "how much shallow features change"),
    "Displacement map": ("displacement map", "where features go"),
    "Dynamic appearance": ("dynamic appearance", "what does not stand still"),
    "Channel-wise motion": ("CMM", "how much reduced features change"),
}
_FLOWS = ("TV-L1", "Farneback", "DIS medium")
#: Places in a video that a moment is chosen from.
_CANDIDATES = 24
#: Inches: the side of a tile, and the width of the labels.
_TILE, _LABEL = 1.6, 2.2


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the picture."""

    name: str
    text: str
    """Lines under the name."""
    tiles: NDArray[np.uint8]
    """uint8 `[columns, h, w, 3]`."""


def load_cues(checkpoints: Sequence[Path]) -> dict[str, Checkpoint]:
    """Load trained models; return each by the name of its cue.

    Raises:
        FlowlessError: A file is no checkpoint, its model has no motion cue, or two have the same.
    """
    found: dict[str, Checkpoint] = {}
    for path in checkpoints:
        loaded = load_checkpoint(path)
        cue = cue_of(loaded.model, torch.zeros((1, *loaded.spec.shape), dtype=torch.uint8))
        if cue is None:
            raise FlowlessError(f"{path}: the model has no motion cue. Give a checkpoint of PAN, STM, Dynamic Appearance or Disentangling.")
        name = _CUES[cue.name][0]
        if name in found:
            raise FlowlessError(f"{path}: {loaded.name} has the cue {name}, as {found[name].name} has. Give one checkpoint for each cue.")
        found[name] = loaded
    return found


def write_picture(
    path: Path, videos: Sequence[Path], *, cues: Mapping[str, Checkpoint], spec: ClipSpec, rates: Mapping[str, str], moments: int
) -> dict[str, Any]:
    """Draw the cues of trained models, and the optical flow that OpenCV has here, on the moments of some videos that move most.

    Args:
        path: The `.jpg` to write, whole or not at all.
        videos: One group of columns each.
        cues: Cue -> the trained model.
        spec: Size and preprocessing of the frames.
        rates: Method -> its speed, for the labels.
        moments: Columns of each video.

    Returns:
        `videos`, `weights` of each cue, and `full_colour_pixels`, the displacement with the fullest colour.
    """
    frames = max([2, *(_frames_of(loaded.model) for loaded in cues.values())])
    stacks = np.concatenate([_moving(video, spec, frames, moments=moments) for video in videos])
    middle = (frames - 1) // 2
    meanings = {**dict(_CUES.values()), **dict.fromkeys(_FLOWS, "optical flow")}
    found = {name: cue_of_stacks(loaded.model, stacks) for name, loaded in cues.items()}
    for method in opencv_flows(stacks[None, :, middle : middle + 2]):
        if method.name in _FLOWS and (run := method.runners[0].run):
            values = np.ascontiguousarray(run(method.given)[:, :, None])
            found[method.name] = Cue(name=method.name, kind="flow", over="frames", values=values, meaning="")
    # No displacement map reaches further than its window; faster motion gets the fullest colour too.
    reach = min([2.0 * WINDOW, *(reach_of(found[name]) for name in _FLOWS if name in found)])
    rows = [Row(name="frame", text="the first of two adjacent", tiles=stacks[:, middle])]
    for name in (name for name in meanings if name in found):
        text = f"{meanings[name]}\n{rates.get(name, '')}\n{cues[name].name if name in cues else ''}"
        tiles = paint(found[name], reach=reach if found[name].kind == "flow" else None)[0, :, 0]
        rows.append(Row(name=name, text=text, tiles=tiles))
    _draw(path, rows, [video.stem for video in videos], reach=reach)
    weights = {name: f"trained, {loaded.name}" for name, loaded in cues.items()}
    return {"videos": [video.name for video in videos], "weights": weights, "full_colour_pixels": round(reach, 2)}


def _frames_of(model: Recognizer) -> int:
    """Return the adjacent frames that a model's cue needs. STM's compares segments: here each segment is one frame."""
    return model.spec.segments if _compares_segments(model) else model.spec.frames_per_segment


def _compares_segments(model: Recognizer) -> bool:
    """Return whether a model's cue is STM's, which compares segments."""
    from flowless.train.models.layers.stm_block import ChannelwiseMotion

    return any(isinstance(module, ChannelwiseMotion) for module in model.modules())


def cue_of_stacks(model: Recognizer, stacks: NDArray[np.uint8]) -> Cue:
    """Return a model's cue of the middle pair of frames of each stack uint8 `[K, T, H, W, 3]`, or of as many frames around it as it takes.

    Displacements are in pixels.
    """
    frames = _frames_of(model)
    middle, start = (frames - 1) // 2, (stacks.shape[1] - 1) // 2 - (frames - 1) // 2
    own = stacks[:, start : start + frames]
    if _compares_segments(model):
        clips = np.repeat(own[:, :, None], model.spec.frames_per_segment, axis=2)
    else:  # stacks are a clip's segments
        spare = np.repeat(own[:1], -len(own) % model.spec.segments, axis=0)
        clips = np.concatenate([own, spare]).reshape(-1, model.spec.segments, *own.shape[1:])
    cue = cue_of(model, torch.from_numpy(clips))
    assert cue is not None
    values = cue.values[:, middle, 0] if cue.over == "segments" else cue.values.reshape(-1, *cue.values.shape[2:])[: len(own)]
    if cue.over != "segments":
        values = values[:, middle if cue.over == "frames" else 0]
    if cue.kind == "flow":  # cells of a coarser grid become pixels
        values = values * np.float32(stacks.shape[2] / values.shape[-2])
    return replace(cue, over="frames", values=values[None, :, None])


def _moving(video: Path, spec: ClipSpec, frames: int, *, moments: int) -> NDArray[np.uint8]:
    """Return a stack of adjacent frames from each part of a video, where it moves most: uint8 `[moments, frames, H, W, 3]`."""
    per_part = max(1, _CANDIDATES // moments)
    stacks = load_clip(video, replace(spec, segments=per_part * moments, frames_per_segment=frames))[0]
    middle = (frames - 1) // 2
    moved = np.abs(np.subtract(stacks[:, middle], stacks[:, middle + 1], dtype=np.int16)).mean((1, 2, 3)).reshape(moments, per_part)
    return stacks[moved.argmax(1) + per_part * np.arange(moments)]


def _draw(path: Path, rows: Sequence[Row], videos: Sequence[str], *, reach: float) -> None:
    """Draw the rows, their labels and the wheel of directions."""
    from matplotlib.figure import Figure

    columns = len(rows[0].tiles)
    width, height = _LABEL + _TILE * columns + 0.2, _TILE * (len(rows) + 1) + 0.3
    figure = Figure(figsize=(width, height))
    edges = {"left": _LABEL / width, "right": 1 - 0.2 / width, "top": 1 - 0.3 / height, "bottom": 0, "wspace": 0.04, "hspace": 0.04}
    axes = figure.subplots(len(rows) + 1, columns, squeeze=False, gridspec_kw=edges)
    for one in axes.ravel():
        one.set_axis_off()
    for row, line in zip(rows, axes, strict=False):
        text = "\n".join(part for piece in row.text.splitlines() for part in textwrap.wrap(piece, 30))
        line[0].text(-0.08, 0.55, row.name, transform=line[0].transAxes, ha="right", va="bottom", weight="bold", color=plots.INK)
        line[0].text(-0.08, 0.5, text, transform=line[0].transAxes, ha="right", va="top", fontsize=8, color=plots.INK)
        for axis, tile in zip(line, row.tiles, strict=True):
            axis.imshow(tile)
    for place, video in enumerate(videos):
        axes[0, place * columns // len(videos)].set_title(video, loc="left")
    axes[-1, 0].imshow(wheel(96))
    note = (
        f"direction of motion from a frame to the next; full colour: {reach:.1f} pixels or more\n"
        "brightness and contrast of the others reach to the largest values of their rows\n"
        "speeds: the fastest engine of each method, full size, same frames and cores"
    )
    axes[-1, 0].text(1.1, 0.5, note, transform=axes[-1, 0].transAxes, va="center", fontsize=8, color=plots.INK)
    with whole_file(path) as draft:
        figure.savefig(draft, format="jpeg", dpi=100, pil_kwargs={"quality": 90})

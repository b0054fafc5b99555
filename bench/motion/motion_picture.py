"""The picture of every motion cue beside optical flow: a row a method, a column a moment of a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flowless.bench.motion.motion_methods import opencv_flows
from flowless.errors import FlowlessError
from flowless.export.explain.cue_pictures import font, paint, reach_of, resized, wheel
from flowless.export.explain.cues import Cue, cue_of
from flowless.files import whole_file
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import Checkpoint, load_checkpoint
from flowless.train.models import Recognizer
from flowless.train.models.layers.displacement import WINDOW
from flowless.train.models.layers.stm_block import ChannelwiseMotion

#: Columns of each video, and the places in each column's part of the video that its moment is chosen from.
_MOMENTS, _CANDIDATES = 3, 8
#: Pixels: the side of a tile, a tile with its margin, the width of the labels.
_SIDE, _STEP, _LABEL = 160, 164, 220


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
        if cue.name in found:
            raise FlowlessError(f"{path}: a second model with the cue {cue.name}. Give one checkpoint for each cue.")
        found[cue.name] = loaded
    return found


def write_picture(path: Path, videos: Sequence[Path], *, cues: Mapping[str, Checkpoint], spec: ClipSpec) -> None:
    """Draw the cues of trained models, and the optical flow that OpenCV has here, on the moments of some videos that move most."""
    frames = max([2, *(_frames_of(loaded.model)[0] for loaded in cues.values())])
    stacks = np.concatenate([_moving(video, spec, frames) for video in videos])
    middle = (frames - 1) // 2
    rows = {f"{name}\n{loaded.name}": cue_of_stacks(loaded.model, stacks) for name, loaded in cues.items()}
    # No displacement map reaches further than its window; faster motion gets the fullest colour too.
    reach = 2.0 * WINDOW
    for method in opencv_flows(stacks[None, :, middle : middle + 2])[:3]:
        if run := method.runners[0].run:
            values = np.ascontiguousarray(run(method.given[0])[None, :, None])
            flow = Cue(name=method.name, kind="flow", over="frames", values=values, meaning="")
            rows[f"{method.name}\noptical flow"], reach = flow, min(reach, reach_of(flow))
    painted = {label: paint(cue, reach=reach if cue.kind == "flow" else None)[0, :, 0] for label, cue in rows.items()}
    picture = _drawn({"frame": stacks[:, middle], **painted}, [video.stem for video in videos], reach=reach)
    with whole_file(path) as draft:
        picture.save(draft, format="jpeg", quality=90)


def _frames_of(model: Recognizer) -> tuple[int, bool]:
    """Return how many adjacent frames a model's cue needs, and whether each is a segment of the clip, as for STM, or all are in one."""
    each = any(isinstance(module, ChannelwiseMotion) for module in model.modules())
    return model.spec.segments if each else model.spec.frames_per_segment, each


def cue_of_stacks(model: Recognizer, stacks: NDArray[np.uint8]) -> Cue:
    """Return a model's cue of the middle pair of frames of each stack uint8 `[K, T, H, W, 3]`, or of as many frames around it as it takes.

    Displacements are in pixels.
    """
    frames, each = _frames_of(model)
    middle = (frames - 1) // 2
    start = (stacks.shape[1] - 1) // 2 - middle
    stacks = stacks[:, start : start + frames]
    clips = stacks[:, :, None].repeat(model.spec.frames_per_segment, 2) if each else stacks[:, None].repeat(model.spec.segments, 1)
    cues = [cue for clip in clips if (cue := cue_of(model, torch.from_numpy(clip[None])))]
    place = (middle, 0) if each else (0, 0 if cues[0].over == "segment" else middle)
    values = np.stack([cue.values[0][place] for cue in cues])
    if cues[0].kind == "flow":  # cells of a coarser grid become pixels
        values *= np.float32(stacks.shape[2] / values.shape[-2])
    return replace(cues[0], over="frames", values=values[None, :, None])


def _moving(video: Path, spec: ClipSpec, frames: int) -> NDArray[np.uint8]:
    """Return a stack of adjacent frames from each part of a video, where it moves most: uint8 `[moments, frames, H, W, 3]`."""
    stacks = load_clip(video, replace(spec, segments=_MOMENTS * _CANDIDATES, frames_per_segment=frames))[0]
    middle = (frames - 1) // 2
    moved = np.abs(np.subtract(stacks[:, middle], stacks[:, middle + 1], dtype=np.int16)).mean((1, 2, 3)).reshape(_MOMENTS, -1)
    return stacks[moved.argmax(1) + _CANDIDATES * np.arange(_MOMENTS)]


def _drawn(rows: Mapping[str, NDArray[np.uint8]], videos: Sequence[str], *, reach: float) -> Image.Image:
    """Draw labelled rows of tiles uint8 `[columns, h, w, 3]`, and the wheel of directions."""
    bottom = 30 + _STEP * len(rows)
    picture = Image.new("RGB", (_LABEL + _STEP * _MOMENTS * len(videos), bottom + 80), "white")
    draw = ImageDraw.Draw(picture)
    for place, video in enumerate(videos):
        draw.text((_LABEL + place * _MOMENTS * _STEP, 6), video, fill="black", font=font(14))
    for number, (label, tiles) in enumerate(rows.items()):
        top = 30 + number * _STEP
        draw.multiline_text((10, top + 60), label, fill="black", font=font(13), spacing=6)
        for column, tile in enumerate(resized(tiles, height=_SIDE, width=_SIDE)):
            picture.paste(Image.fromarray(tile), (_LABEL + column * _STEP, top))
    disc = Image.fromarray(wheel(70))
    picture.paste(disc, (_LABEL, bottom + 5), disc)
    note = f"direction of motion from a frame to the next;\nfull colour: {reach:.1f} pixels or more"
    draw.multiline_text((_LABEL + 85, bottom + 22), note, fill="black", font=font(12))
    return picture

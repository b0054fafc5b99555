"""The systems that are compared: the four systems, their baselines, and controls that explain a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowless.train.recipes.training_fields import ObjectiveName


@dataclass(frozen=True, kw_only=True)
class System:
    """One row of the comparison: a model, and what differs in its training."""

    name: str
    model: str
    about: str
    clip: dict[str, Any]
    """Recipe fields of the clip that it sees on Moving Shapes, and those that depend on the clip."""
    of: str = ""
    """For a control, the system whose result it explains. A control has no goal and is trained with one seed."""
    objective: ObjectiveName = "scores"
    videos: int = 1
    """Factor on the number of training videos; above 1 for controls."""


# A video of 16 frames gives eight segments of one frame, or four stacks of four frames. Disentangling runs two networks on every pair of
# frames, at ten times the cost: it gets two stacks of three.
_FRAMES = {"segments": 8, "frames_per_segment": 1}
_STACKS = {"segments": 4, "frames_per_segment": 4}
_PAIRS = {"segments": 2, "frames_per_segment": 3, "displacement_window": 2}
_TWINS = "stm by Twins Training: two augmentations of each clip, whose scores have to agree"

_ALL = (
    System(name="tsn", model="tsn-r18", clip=_FRAMES, about="single frames, their scores averaged: blind to order"),
    System(name="tsm", model="tsm-r18", clip=_FRAMES, about="an eighth of the channels shifted each way between segments"),
    System(name="tsm-more", of="tsm", model="tsm-r18", clip=_FRAMES, videos=4, about="a control: tsm on four times as many videos"),
    System(name="disentangling", model="disentangling-bninception", clip=_PAIRS, about="appearance, displacement maps, warped differences"),
    System(name="pan-lite", model="pan-lite-r18", clip=_STACKS, about="a frame and its PA maps, shift, VAP"),
    System(name="pan-full", model="pan-full-r18", clip=_STACKS, about="an RGB and a PA branch, each with shift and VAP"),
    System(name="stm", model="stm-r18", clip=_FRAMES, about="CSTM and CMM in every block, single frames"),
    System(name="stm-twins", model="stm-r18", clip=_FRAMES, objective="twins", about=_TWINS),
    System(name="da-tsm", model="da-tsm-r18", clip=_STACKS, about="dynamic appearance of each segment, shift; a second loss (MGDA)"),
)
#: Name -> system, in the order of the tables: baselines, then by the year of the paper.
SYSTEMS = {system.name: system for system in _ALL}
#: The baseline that is blind to the order of frames.
BLIND = "tsn"
#: Seed of the random order of frames.
SHUFFLE_SEED = 0

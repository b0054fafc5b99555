"""Who takes part in `flowless bench systems`: the four systems, their baselines, and controls that explain a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowless.train.recipes.training_fields import ObjectiveName


@dataclass(frozen=True, kw_only=True)
class System:
    """A contestant: the model that it trains, and what that model's recipe does not take from its name."""

    name: str
    model: str
    about: str
    clip: tuple[tuple[str, Any], ...]
    """Recipe fields of the clip that it sees, and of what depends on the clip."""
    of: str = ""
    """The system whose result a control explains; a control is no contestant, and trained once."""
    objective: ObjectiveName = "scores"
    """What its training minimises."""
    videos: int = 1
    """A control learns from so many times as many videos as the others."""

    @property
    def base(self) -> str:
        """Name of the system that a control explains; any other's own name."""
        return self.of or self.name

    @property
    def cost_of(self) -> str:
        """Name of the first system with this network and clip: what one costs, the other does."""
        return next(other.name for other in SYSTEMS if (other.model, other.clip) == (self.model, self.clip))


# A video of 16 frames has eight segments for what sees one frame of each, or four stacks of four frames. Disentangling runs two
# networks on every pair of frames, at ten times the cost: it gets two stacks of three.
_FRAMES = (("segments", 8), ("frames_per_segment", 1))
_STACKS = (("segments", 4), ("frames_per_segment", 4))
_PAIRS = (("segments", 2), ("frames_per_segment", 3), ("displacement_window", 2))

#: The order of the table: baselines, then by the year of the paper.
SYSTEMS = (
    System(name="tsn", model="tsn-r18", clip=_FRAMES, about="single frames, their scores averaged: blind to order"),
    System(
        name="tsm",
        model="tsm-r18",
        clip=_FRAMES,
        about="an eighth of the channels shifted each way between segments",
    ),
    System(name="tsm-more", of="tsm", model="tsm-r18", clip=_FRAMES, videos=4, about="a control: tsm on four times as many videos"),
    System(
        name="disentangling",
        model="disentangling-bninception",
        clip=_PAIRS,
        about="appearance, displacement maps, warped differences",
    ),
    System(name="pan-lite", model="pan-lite-r18", clip=_STACKS, about="a frame and its PA maps, shift, VAP"),
    System(
        name="pan-full",
        model="pan-full-r18",
        clip=_STACKS,
        about="an RGB and a PA branch, each with shift and VAP",
    ),
    System(name="stm", model="stm-r18", clip=_FRAMES, about="CSTM and CMM in every block, single frames"),
    System(
        name="stm-twins",
        model="stm-r18",
        clip=_FRAMES,
        objective="twins",
        about="stm by Twins Training: two augmentations of each clip, whose scores have to agree",
    ),
    System(
        name="da-tsm",
        model="da-tsm-r18",
        clip=_STACKS,
        about="dynamic appearance of each segment, shift; a second loss (MGDA)",
    ),
    System(
        name="da-tsm-more",
        of="da-tsm",
        model="da-tsm-r18",
        clip=_STACKS,
        videos=4,
        about="a control: da-tsm on four times as many videos",
    ),
)
NAMES = tuple(system.name for system in SYSTEMS)

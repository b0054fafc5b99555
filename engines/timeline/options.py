"""Options of a timeline, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowless.errors import FlowlessError


@dataclass(frozen=True, kw_only=True)
class TimelineOptions:
    """How a video is cut into windows, and how segments are made of the windows' scores."""

    window: float = 2.0
    """Seconds of a window; best about as long as the clips that the model was trained on. A shorter video is one window."""
    stride: float = 0.5
    """Seconds from one window's start to the next one's; the last window ends with the video."""
    rate: float | None = None
    """Frames per second of a folder of pictures."""
    threshold: float = 0.3
    """Least probability of an action; what is below is background. (The mean over windows is lower than a clip's own probability.)"""
    background: tuple[str, ...] = ()
    """Labels of the model that are background, too."""
    merge: float = 0.5
    """Seconds of background, at most, over which two segments of one label become one."""
    shortest: float = 0.0
    """Seconds of the shortest segment; shorter ones are left out."""
    detections: bool = False
    """Also find each label's segments on their own, which may overlap: peaks of at least the threshold, and what is half as high around."""
    nms: float = 0.4
    """Detections: of two of one label with a larger temporal IoU, the one with the lower score is left out."""

    def __post_init__(self) -> None:
        """Validate all fields; one error lists all problems."""
        problems = [
            f"{name} is {value!r}; it must be a number of seconds above 0"
            for name, value in (("window", self.window), ("stride", self.stride))
            if not _is_number(value) or value <= 0
        ]
        problems += [
            f"{name} is {value!r}; it must be a number of seconds of at least 0"
            for name, value in (("merge", self.merge), ("shortest", self.shortest))
            if not _is_number(value) or value < 0
        ]
        problems += [
            f"{name} is {value!r}; it must be a number above 0, at most 1"
            for name, value in (("threshold", self.threshold), ("nms", self.nms))
            if not _is_number(value) or not 0 < value <= 1
        ]
        if self.rate is not None and (not _is_number(self.rate) or self.rate <= 0):
            problems.append(f"rate is {self.rate!r}; it must be None or frames per second, above 0")
        if isinstance(self.background, str) or not all(isinstance(label, str) for label in self.background):
            problems.append(f"background is {self.background!r}; it must be a tuple of labels")
        if problems:
            raise FlowlessError(f"timeline: {'; '.join(problems)}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Training augmentation and the options of a loader; imports neither PyTorch nor DALI.

All random numbers are drawn here, in NumPy, from `sampling.sample_rng(seed, epoch, video id)`; the DALI graph gets the drawn values.
A sample is therefore independent of batch, thread, rank and device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec

#: Largest difference between the scale indices of a crop's width and height; 1 distorts the aspect ratio by up to 1.33.
_MAX_SCALE_STEPS = 1
#: A crop side that differs from the network's by less than this is set to it, which avoids a resize by a pixel or two.
_SNAP = 3
#: The 13 positions of a crop, in quarters of the free width and height: corners, centre, sides, quarters.
_POSITIONS = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Training augmentation; all frames of a clip get the same random draw."""

    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Sides of the crop relative to the frame's short side (multi-scale crop of TSN, TSM and PAN)."""
    flip: bool = False
    """Mirror half of the clips. Actions that distinguish left and right need `flip_labels`."""
    flip_labels: Mapping[str, str] = field(default_factory=dict)
    """Label -> the label of its mirror image, such as `{"left": "right"}`; the inverse is implied."""
    brightness: float = 0.0
    """Largest relative change of brightness: 0.2 draws a factor from 0.8 to 1.2. 0 is off."""
    contrast: float = 0.0
    """Largest relative change of contrast. 0 is off."""
    saturation: float = 0.0
    """Largest relative change of saturation. 0 is off."""
    hue: float = 0.0
    """Largest rotation of the hue, in degrees. 0 is off."""
    grey: float = 0.0
    """Probability of converting a clip to grey. 0 is off."""
    draws: int = 1
    """Augmented views of each clip, from one decode of the same frames: each with its own crop, flip and colours, and its own label
    where a flip changes the label (repeated augmentation)."""

    def __post_init__(self) -> None:
        """Validate all fields; one error lists all problems."""
        problems = []
        if not self.scales or any(not 0 < scale <= 1 for scale in self.scales):
            problems.append(f"scales is {self.scales!r}; it must be one or more numbers, each above 0 and at most 1")
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 180.0), ("grey", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                problems.append(f"{name} is {getattr(self, name)!r}; it must be from 0 to {most:g}")
        if self.draws < 1:
            problems.append(f"draws is {self.draws}; it must be at least 1")
        if self.flip_labels and not self.flip:
            problems.append("flip_labels is given but flip is off; turn flip on, or leave flip_labels out")
        clashes = [a for a, b in self.flip_labels.items() if self.flip_labels.get(b, a) != a]
        if clashes or len(set(self.flip_labels.values())) < len(self.flip_labels):
            problems.append(f"flip_labels is {dict(self.flip_labels)!r}; mirrored twice, a label must map to itself")
        if problems:
            raise FlowlessError("Augmentation: " + "; ".join(problems) + ".")

    @property
    def colour(self) -> bool:
        """Whether any colour augmentation is on."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.grey))

    def mirrored(self, labels: Sequence[str]) -> tuple[int, ...]:
        """Return, for each label index, the index of its mirror image's label.

        Raises:
            FlowlessError: `flip_labels` names a label that is not among `labels`.
        """
        pairs = {**{b: a for a, b in self.flip_labels.items()}, **self.flip_labels}
        unknown = sorted(set(pairs) - set(labels))
        if unknown:
            raise FlowlessError(f"Augmentation: flip_labels names {', '.join(map(repr, unknown))}; the labels are {', '.join(labels)}.")
        index = {label: number for number, label in enumerate(labels)}
        return tuple(index[pairs.get(label, label)] for label in labels)


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Options of a ClipLoader."""

    seed: int = 0
    """Random seed of shuffling, frame sampling and augmentation."""
    training: bool | None = None
    """Shuffle, sample randomly, augment, and replace unreadable videos. None: True for the rule `train`, else False."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Training augmentation; ignored in evaluation."""
    drop_last: bool | None = None
    """Leave out an incomplete last batch. None: True in training, False in evaluation."""
    shuffle: bool | None = None
    """Shuffle the videos every epoch. None: True in training, False in evaluation."""
    rank: int = 0
    """Rank of this process, 0 to `world` - 1."""
    world: int = 1
    """Number of processes among which an epoch is divided."""
    threads: int | None = None
    """Decoding threads; None: one per processor core."""
    prefetch: int = 2
    """Most finished batches that are queued for the model."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Device of resizing and of the batches; with `gpu`, NVDEC decodes the videos that it supports."""
    device_id: int = 0
    """Number of the GPU, if `device` is `gpu`."""
    decoder: Literal["auto", "pyav", "dali"] = "auto"
    """The video decoder. `auto`: on a GPU, DALI for the videos that the GPU's driver supports; else PyAV. `dali`: DALI for every video
    that it supports, on the CPU too (VP8, VP9, MJPEG; its colours differ from PyAV's by one to two levels on average)."""
    max_bad_share: float = 0.05
    """Fraction of unreadable videos above which an epoch stops with an error."""

    def __post_init__(self) -> None:
        """Validate all fields; one error lists all problems."""
        problems = []
        if self.world < 1 or not 0 <= self.rank < max(self.world, 1):
            problems.append(f"rank is {self.rank} of world {self.world}; rank must be from 0 to world - 1")
        if self.threads is not None and self.threads < 1:
            problems.append(f"threads is {self.threads}; it must be at least 1")
        if self.prefetch < 1:
            problems.append(f"prefetch is {self.prefetch}; it must be at least 1")
        if not 0 <= self.max_bad_share <= 1:
            problems.append(f"max_bad_share is {self.max_bad_share!r}; it must be from 0 to 1")
        for name, allowed in (("device", ("cpu", "gpu")), ("decoder", ("auto", "pyav", "dali"))):
            if getattr(self, name) not in allowed:
                problems.append(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if problems:
            raise FlowlessError("LoaderOptions: " + "; ".join(problems) + ".")


@dataclass(frozen=True, kw_only=True)
class View:
    """The region of an upright frame that becomes the network's input, and its colour changes."""

    top: float
    left: float
    bottom: float
    right: float
    """Edges of the region in pixels of the upright frame; `left` > `right` mirrors."""
    colour: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)
    """Factors of brightness, contrast and saturation, and hue rotation in degrees."""

    @property
    def mirrored(self) -> bool:
        """Whether the region is mirrored."""
        return self.left > self.right


def training_view(rng: np.random.Generator, *, width: int, height: int, spec: ClipSpec, augmentation: Augmentation) -> View:
    """Draw a clip's crop, flip and colours, as PAN's published code does.

    The crop's sides are `int(short side * scale)`, set to the network's input size where they are within two pixels of it; the scales of
    its width and height are at most one step apart; it has one of 13 positions.

    Args:
        rng: the sample's random generator.
        width: columns of the upright frame, in pixels.
        height: rows of the upright frame, in pixels.
        spec: defines the network's input size.
        augmentation: the augmentation.
    """
    sizes = _crop_sizes(width, height, spec, augmentation)
    w, h = sizes[rng.integers(len(sizes))]
    across, down = _POSITIONS[rng.integers(len(_POSITIONS))]
    left, top = across * ((width - w) // 4), down * ((height - h) // 4)
    mirror = augmentation.flip and bool(rng.integers(2))
    ends = (left + w, left) if mirror else (left, left + w)
    return View(top=top, left=ends[0], bottom=top + h, right=ends[1], colour=_colour(rng, augmentation))


def view_is_deterministic(width: int, height: int, *, spec: ClipSpec, augmentation: Augmentation) -> bool:
    """Return whether all views that `training_view` can draw for this frame size are identical."""
    if augmentation.flip or augmentation.colour:
        return False
    sizes = set(_crop_sizes(width, height, spec, augmentation))
    # Positions are multiples of a quarter of the free width and height, in whole pixels.
    return len(sizes) == 1 and all((width - w) // 4 == 0 and (height - h) // 4 == 0 for w, h in sizes)


def _crop_sizes(width: int, height: int, spec: ClipSpec, augmentation: Augmentation) -> list[tuple[int, int]]:
    """Return the equally likely sizes (width, height) of the crop."""
    sides = [int(min(width, height) * scale) for scale in augmentation.scales]
    widths, heights = ([max(1, own if abs(side - own) < _SNAP else side) for side in sides] for own in (spec.width, spec.height))
    pairs = [(w, h) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= _MAX_SCALE_STEPS]
    # Snapping may exceed a frame that is a pixel or two smaller than the network's input.
    return [(min(w, width), min(h, height)) for w, h in pairs]


def _colour(rng: np.random.Generator, augmentation: Augmentation) -> tuple[float, float, float, float]:
    if not augmentation.colour:
        return (1.0, 1.0, 1.0, 0.0)
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4)
    coloured = not augmentation.grey or rng.random() >= augmentation.grey
    return (
        1 + float(brightness) * augmentation.brightness,
        1 + float(contrast) * augmentation.contrast,
        1 + float(saturation) * augmentation.saturation if coloured else 0.0,
        float(hue) * augmentation.hue,
    )

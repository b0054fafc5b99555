"""What training does to a clip beside choosing its frames, and how a loader works. Torch-free and DALI-free.

All chance is drawn here, in NumPy, from `sampling.sample_rng(seed, epoch, video id)`; the graph gets numbers, never a
seed. So a sample is the same whatever batch, thread, rank or device makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec

#: Scale-index distance that a crop's two sides may differ by: 1 of the four scales bends the picture by up to 1.33.
_MOST_DISTORTION = 1
#: A crop side this close to the network's own is taken to be it, which spares a resize by a pixel or two.
_SNAP = 3
#: The 13 places of a crop, in quarter steps of the free width and height: corners, centre, sides, quarters.
_PLACES = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Training's changes to a clip; one draw for all frames of a clip."""

    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Sides of the crop, in units of the frame's short side (multi-scale crop of TSN, TSM and PAN)."""
    flip: bool = False
    """Mirror half of the clips. Not for actions that have a side, unless `flip_labels` says which become which."""
    flip_labels: Mapping[str, str] = field(default_factory=dict)
    """Label -> the label of its mirror image, such as `{"left": "right"}`; the way back is understood."""
    brightness: float = 0.0
    """Largest change of brightness, as a share: 0.2 draws a factor from 0.8 to 1.2. 0 is off."""
    contrast: float = 0.0
    """Largest change of contrast, as a share. 0 is off."""
    saturation: float = 0.0
    """Largest change of saturation, as a share. 0 is off."""
    hue: float = 0.0
    """Largest turn of the hue, in degrees. 0 is off."""
    grey: float = 0.0
    """Share of the clips that lose their colours. 0 is off."""
    draws: int = 1
    """Pictures that training makes of each clip, from one decode of the same frames: each with a crop, a flip and colours of its
    own, and after a flip that changes it, a label of its own."""

    def __post_init__(self) -> None:
        """Refuse what cannot be: all problems in one error."""
        problems = []
        if not self.scales or any(not 0 < scale <= 1 for scale in self.scales):
            problems.append(f"scales is {self.scales!r}; it must be one number or more, each above 0 and at most 1")
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 180.0), ("grey", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                problems.append(f"{name} is {getattr(self, name)!r}; it must be from 0 to {most:g}")
        if self.draws < 1:
            problems.append(f"draws is {self.draws}; it must be at least 1")
        if self.flip_labels and not self.flip:
            problems.append("flip_labels is given but flip is off; turn flip on, or leave flip_labels out")
        clashes = [a for a, b in self.flip_labels.items() if self.flip_labels.get(b, a) != a]
        if clashes or len(set(self.flip_labels.values())) < len(self.flip_labels):
            problems.append(f"flip_labels is {dict(self.flip_labels)!r}; mirrored twice, a label must come back to itself")
        if problems:
            raise FlowlessError("Augmentation: " + "; ".join(problems) + ".")

    @property
    def colour(self) -> bool:
        """Whether any change of colours is on."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.grey))

    def mirrored(self, labels: Sequence[str]) -> tuple[int, ...]:
        """Return, for each label's position, the position of its mirror image's label.

        Raises:
            FlowlessError: `flip_labels` names a label that is not among `labels`.
        """
        pairs = {**{b: a for a, b in self.flip_labels.items()}, **self.flip_labels}
        unknown = sorted(set(pairs) - set(labels))
        if unknown:
            raise FlowlessError(f"Augmentation: flip_labels names {', '.join(map(repr, unknown))}; the labels are {', '.join(labels)}.")
        place = {label: number for number, label in enumerate(labels)}
        return tuple(place[pairs.get(label, label)] for label in labels)


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How a ClipLoader works."""

    seed: int = 0
    """Of the order of videos, of the frames and of the augmentation."""
    training: bool | None = None
    """Shuffle, jitter, augment, replace bad videos. None: yes for the rule `train`, no for the others."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Training's changes to a clip; an evaluation ignores it."""
    drop_last: bool | None = None
    """Leave out a last batch that is not full. None: yes in training, no in evaluation."""
    shuffle: bool | None = None
    """Another order every epoch. None: yes in training, no in evaluation."""
    rank: int = 0
    """This process's number among `world`."""
    world: int = 1
    """Processes that share an epoch, each with its own part."""
    threads: int | None = None
    """Threads that decode; None takes one a processor core."""
    prefetch: int = 2
    """Finished batches that wait for the model, at most."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where frames are resized and batches come to lie; `gpu` also decodes there."""
    device_id: int = 0
    """The GPU's number, where `device` is `gpu`."""
    decoder: Literal["auto", "pyav", "dali"] = "auto"
    """Who decodes. `auto`: DALI on a GPU for the videos that the GPU's driver says it decodes, PyAV for everything else. `dali`:
    DALI for every video that it can, on the CPU too (VP8, VP9, MJPEG; its colours differ from PyAV's by a level or so)."""
    max_bad_share: float = 0.05
    """Share of bad videos above which an epoch stops."""

    def __post_init__(self) -> None:
        """Refuse what cannot be: all problems in one error."""
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
    """Which part of an upright frame becomes the network's picture, and how it is changed."""

    top: float
    left: float
    bottom: float
    right: float
    """Edges of the part, in pixels of the upright frame; `left` > `right` mirrors."""
    colour: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)
    """Factors of brightness, contrast and saturation, and degrees of hue."""

    @property
    def mirrored(self) -> bool:
        """Whether left and right change places."""
        return self.left > self.right


def training_view(rng: np.random.Generator, *, width: int, height: int, spec: ClipSpec, augmentation: Augmentation) -> View:
    """Draw a clip's crop, flip and colours.

    The crop's sides are `int(short side * scale)`, snapped to the network's own where they are within two pixels of it; its
    width and height come from scales at most one step apart; it lies at one of 13 places. So did PAN's published code.

    Args:
        rng: the sample's source of chance.
        width: columns of the upright frame, in pixels.
        height: rows of the upright frame, in pixels.
        spec: says the network's picture size.
        augmentation: what may happen.
    """
    sizes = _crop_sizes(width, height, spec, augmentation)
    w, h = sizes[rng.integers(len(sizes))]
    across, down = _PLACES[rng.integers(len(_PLACES))]
    left, top = across * ((width - w) // 4), down * ((height - h) // 4)
    mirror = augmentation.flip and bool(rng.integers(2))
    ends = (left + w, left) if mirror else (left, left + w)
    return View(top=top, left=ends[0], bottom=top + h, right=ends[1], colour=_colour(rng, augmentation))


def always_alike(width: int, height: int, *, spec: ClipSpec, augmentation: Augmentation) -> bool:
    """Return whether every view that `training_view` can draw of frames of this size is the same pixels: nothing is left to chance."""
    if augmentation.flip or augmentation.colour:
        return False
    sizes = set(_crop_sizes(width, height, spec, augmentation))
    # A crop is moved by quarters of the free width and height, in whole pixels.
    return len(sizes) == 1 and all((width - w) // 4 == 0 and (height - h) // 4 == 0 for w, h in sizes)


def _crop_sizes(width: int, height: int, spec: ClipSpec, augmentation: Augmentation) -> list[tuple[int, int]]:
    """Return the sizes (width, height) of crop that are drawn from, each as likely."""
    sides = [int(min(width, height) * scale) for scale in augmentation.scales]
    widths, heights = ([max(1, own if abs(side - own) < _SNAP else side) for side in sides] for own in (spec.width, spec.height))
    pairs = [(w, h) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= _MOST_DISTORTION]
    # A frame a pixel or two smaller than the network's picture snaps to more than it has.
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

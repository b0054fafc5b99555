"""ClipSpec: the definition of a clip, shared by loader, checkpoint, ONNX file, bundle and runtime."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from flowless.errors import FlowlessError

#: Sampling rules of a stored ClipSpec, which a runtime uses; see `sampling` for each.
EvaluationRule = Literal["centre", "two-clip", "ten-draw", "one-dense", "dense", "consecutive", "ten-consecutive"]
Rule = Literal["train", EvaluationRule]
#: Crops of an evaluation: one at the centre, or three along the frame's long side.
CropRule = Literal["centre", "three"]
#: What is averaged over the views of a video: the network's scores (logits), or their softmax.
Average = Literal["logits", "softmax"]

#: Number of clips per video and of crops per frame in an evaluation; the views are all pairs of the two.
CLIPS: dict[EvaluationRule, int] = {
    "centre": 1,
    "two-clip": 2,
    "ten-draw": 10,
    "one-dense": 1,
    "dense": 10,
    "consecutive": 1,
    "ten-consecutive": 10,
}
CROPS: dict[CropRule, int] = {"centre": 1, "three": 3}
#: Defaults of fields that older stored specs lack.
_ABSENT: dict[str, Any] = {"crop_side": None, "average": "logits"}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Definition of a clip, from frame sampling to the network's input.

    A clip is uint8 `[views, segments, frames_per_segment, height, width, 3]`, RGB, values 0 to 255.
    Evaluation resizes the upright frame so that its short side is `short_side` (antialiased bilinear, Pillow's
    BILINEAR; the long side is `int(short_side * long / short)`, and a frame whose short side has that length already is
    not resized), then crops `height` x `width` from the centre, or three times along the long side. With `crop_side` it crops a square of
    that side instead, and resizes it to `height` x `width` with the same filter. Views are ordered as in PAN's published code: all
    clips of the first crop, then all of the second. `mean` and `std` are in units of the range 0 to 1 and are applied inside the
    network.
    """

    segments: int = 8
    """Segments N that the video is divided into."""
    frames_per_segment: int = 4
    """Adjacent frames m taken from each segment."""
    height: int = 224
    """Rows of the network's input frame, in pixels."""
    width: int = 224
    """Columns of the network's input frame, in pixels."""
    short_side: int = 256
    """The frame's short side after resizing, before the crop, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of R, G, B, in the range 0 to 1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of R, G, B, in the range 0 to 1."""
    sampling: EvaluationRule = "centre"
    """Frame sampling rule of an evaluation."""
    resize: Literal["antialiased-bilinear"] = "antialiased-bilinear"
    """The only resize filter: a triangle as wide as the scale."""
    crop: CropRule = "centre"
    """Crops of an evaluation: the centre; or three along the long side: its start, its end, its middle."""
    crop_side: int | None = None
    """Side in pixels of the square that an evaluation crops and then resizes to the network's input; None crops the input size itself."""
    average: Average = "logits"
    """What is averaged over a video's views: the network's scores, or their softmax (`view_scores`)."""
    colour: Literal["RGB"] = "RGB"
    """Channel order."""
    pixel: Literal["uint8"] = "uint8"
    """Type of a pixel at the network's input."""

    def __post_init__(self) -> None:
        """Validate all fields; one error lists all problems."""
        problems = [
            f"{name} is {getattr(self, name)!r}; it must be an integer of at least {least}"
            for name, least in (("segments", 1), ("frames_per_segment", 1), ("height", 1), ("width", 1), ("short_side", 1))
            if type(getattr(self, name)) is not int or getattr(self, name) < least
        ]
        if self.crop_side is not None and (type(self.crop_side) is not int or self.crop_side < 1 or self.height != self.width):
            problems.append(
                f"crop_side is {self.crop_side!r} of a frame of {self.height} x {self.width}; it must be None, or for a square frame an "
                f"integer of at least 1"
            )
        if not problems and self.short_side < max(self.crop_size):
            problems.append(f"short_side is {self.short_side}; it must be at least the crop's larger side, {max(self.crop_size)}")
        for name, least in (("mean", 0.0), ("std", 1e-6)):
            value = getattr(self, name)
            if not _three_numbers(value) or any(not least <= x <= 1.0 for x in value):
                problems.append(f"{name} is {value!r}; it must be three numbers from {least:g} to 1 (R, G, B)")
        for name, rules in (("sampling", EvaluationRule), ("crop", CropRule), ("average", Average)):
            if getattr(self, name) not in get_args(rules):
                problems.append(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(rules))}")
        for name, only in (("resize", "antialiased-bilinear"), ("colour", "RGB"), ("pixel", "uint8")):
            if getattr(self, name) != only:
                problems.append(f"{name} is {getattr(self, name)!r}; this version supports only {only!r}")
        if problems:
            raise FlowlessError("ClipSpec: " + "; ".join(problems) + ".")

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape of one view: `(segments, frames_per_segment, height, width, 3)`."""
        return (self.segments, self.frames_per_segment, self.height, self.width, 3)

    @property
    def crop_size(self) -> tuple[int, int]:
        """Rows and columns of an evaluation's crop of the resized frame."""
        return (self.height, self.width) if self.crop_side is None else (self.crop_side, self.crop_side)

    @property
    def views(self) -> int:
        """Number of views per video whose scores an evaluation averages: crops x clips."""
        return CROPS[self.crop] * CLIPS[self.sampling]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as stored in the manifest."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> ClipSpec:
        """Read the output of `to_dict`, also without `crop_side` and `average`; raise FlowlessError on missing or unknown fields."""
        document = {**_ABSENT, **document}
        known = {field.name for field in fields(cls)}
        wrong = [f"unknown field {name!r}" for name in sorted(set(document) - known)]
        wrong += [f"missing field {name!r}" for name in sorted(known - set(document))]
        if wrong:
            raise FlowlessError(f"ClipSpec: {'; '.join(wrong)}. It was written by another version of flowless; export the model again.")
        lists = {name: tuple(value) for name, value in document.items() if isinstance(value, list)}
        return cls(**{**document, **lists})


def _three_numbers(value: Any) -> bool:
    numbers = isinstance(value, list | tuple) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    return numbers and len(value) == 3

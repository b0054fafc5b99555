"""Size and accuracy of each model as its paper reports them, for `flowless models` and for tests of the counted sizes.

The papers' FLOPs are multiply-accumulate operations (MAC), as here, with two exceptions in Dynamic Appearance (see
tests/train/test_appearance_tables.py): da-vit-b's count multiplications and additions separately, at 224 x 224 and without the matrix
products inside attention; da-x3d's include X3D's first convolution over every frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flowless.pipeline.clip.spec import ClipSpec


@dataclass(frozen=True, kw_only=True)
class PaperResult:
    """One model's row in its paper; None where the paper gives no such number."""

    spec: ClipSpec
    """The clip that the numbers are for."""
    source: str
    """The paper and its table."""
    parameters: float | None = None
    """Millions."""
    gmacs: float | None = None
    """Billions, for one clip."""
    views: int = 1
    """Number of views whose scores the accuracy averages."""
    top1: Mapping[str, float] = field(default_factory=dict)
    """Data set -> top-1 in per cent."""


def _clip(segments: int, frames: int, size: int = 224) -> ClipSpec:
    return ClipSpec(segments=segments, frames_per_segment=frames, height=size, width=size, short_side=256)


_PAN = "PAN, Table V"
_STM = "STM, Table 4"
_DA = "Dynamic Appearance, Table 1"

#: Model -> its row in the paper; models that the papers do not have (other depths, single branches) are left out.
PAPER_RESULTS: dict[str, PaperResult] = {
    "tsn-r50": PaperResult(spec=_clip(8, 1), source=_STM, parameters=23.8, gmacs=32.9, top1={"something-v1": 19.7, "something-v2": 27.8}),
    "tsm-r50": PaperResult(spec=_clip(8, 1), source=_STM, parameters=24.3, gmacs=32.9, top1={"something-v1": 45.6, "something-v2": 59.1}),
    "pan-lite-r50": PaperResult(
        spec=_clip(8, 4), source=_PAN, gmacs=35.7, top1={"something-v1": 48.0, "something-v2": 60.8, "jester": 96.2, "kinetics400": 73.1}
    ),
    "pan-full-r50": PaperResult(
        spec=_clip(8, 4), source=_PAN, gmacs=67.7, top1={"something-v1": 50.5, "something-v2": 63.8, "jester": 96.6, "kinetics400": 74.4}
    ),
    "pan-en-r50": PaperResult(
        spec=_clip(8, 4, 256),
        source=_PAN,
        gmacs=46.6 + 88.4,
        views=2,
        top1={"something-v1": 53.4, "something-v2": 66.2, "jester": 97.2, "kinetics400": 75.3},
    ),
    "pan-en-r101": PaperResult(
        spec=_clip(8, 4, 256),
        source=_PAN,
        gmacs=85.6 + 166.1,
        views=2,
        top1={"something-v1": 55.3, "something-v2": 66.5, "jester": 97.4},
    ),
    "stm-r18": PaperResult(spec=_clip(8, 1), source=_STM, parameters=11.0, gmacs=14.6, top1={"something-v1": 40.5}),
    "stm-r34": PaperResult(spec=_clip(8, 1), source=_STM, parameters=20.5, gmacs=29.4, top1={"something-v1": 43.8}),
    "stm-r50": PaperResult(spec=_clip(8, 1), source=_STM, parameters=24.0, gmacs=33.3, top1={"something-v1": 48.5}),
    "da-tsm-r50": PaperResult(spec=_clip(8, 4, 256), source=_DA, parameters=23.8, gmacs=43.1, views=6, top1={"something-v1": 50.1}),
    "da-x3d-xs": PaperResult(spec=_clip(4, 8, 160), source=_DA, parameters=3.34, gmacs=0.8, views=6, top1={"something-v1": 43.1}),
    "da-x3d-m": PaperResult(spec=_clip(16, 3, 256), source=_DA, parameters=3.34, gmacs=7.0, views=6, top1={"something-v1": 53.7}),
    "da-vit-b": PaperResult(spec=_clip(8, 4, 256), source=_DA, parameters=86.3, gmacs=270.0, views=3, top1={"something-v1": 46.4}),
    "disentangling-bninception": PaperResult(
        spec=_clip(3, 8), source="Disentangling, Tables 7 and 8", top1={"kinetics400": 71.5, "ucf101": 95.9}
    ),
}

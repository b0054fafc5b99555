"""How much a model computes: parameters, and multiplications with additions (MAC), the papers' unit."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from flowless.pipeline.spec import ClipSpec
from flowless.train.models import Recognizer

#: PA's filters, and the weights of each.
_FILTERS, _TAPS = 8, 3 * 7 * 7


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model costs for one clip."""

    parameters: int
    macs: int


def paper_pa_macs(spec: ClipSpec, *, encoding: str = "e1") -> int:
    """Count PA as the paper does: every frame convolved with bias, eight squares a map; e2 adds the mean over the filters.

    For 8 segments of 6 frames of 224 x 224 this gives the paper's Table I: 2.868 G (e1) and 2.884 G (e2).
    """
    pixels = spec.segments * spec.height * spec.width
    maps = pixels * (spec.frames_per_segment - 1)
    return pixels * spec.frames_per_segment * _FILTERS * (_TAPS + 1) + maps * _FILTERS * (2 if encoding == "e2" else 1)


def pa_macs(spec: ClipSpec) -> int:
    """Count PA as this code's formula reads: m - 1 convolutions of differences without bias, eight squares a map."""
    maps = spec.segments * (spec.frames_per_segment - 1) * spec.height * spec.width
    return maps * _FILTERS * (_TAPS + 1)


@register_flop_formula(torch.ops.flowless.persistence)
def _persistence_flops(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    filters, *taps = weight_shape
    return 2 * math.prod(out_shape) * filters * (math.prod(taps) + 1)


def count(model: Recognizer) -> Size:
    """Count a model's parameters, and its MACs for one clip (convolutions, matrix products, PA), without running it."""
    clip = torch.zeros((1, *model.spec.shape), dtype=torch.uint8, device="meta")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    twin = copy.deepcopy(model).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(clip)
    return Size(parameters=parameters, macs=counter.get_total_flops() // 2)

"""Count a model's parameters and multiply-accumulate operations (MAC), which the papers call FLOPs."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import Recognizer, build_model
from flowless.train.models.layers.stm_block import ChannelwiseTemporalConv
from flowless.train.models.layers.temporal_projection import PixelwiseTemporalProjection

#: Number of PA's filters, and of the weights of each filter in the first layer and in deeper layers.
_FILTERS, _TAPS, _DEEPER_TAPS = 8, 3 * 7 * 7, 8 * 7 * 7


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model's parameters, and its multiply-accumulate operations for one clip."""

    parameters: int
    macs: int


def pa_parameters(depth: int = 1) -> int:
    """Count PA's parameters as the paper does: weights and biases of `depth` layers of eight 7x7 filters (1,184 for one)."""
    return _FILTERS * (_TAPS + 1) + (depth - 1) * _FILTERS * (_DEEPER_TAPS + 1) if depth else 0


def paper_pa_macs(spec: ClipSpec, *, encoding: str = "e1", depth: int = 1) -> int:
    """Count PA's MACs as the paper does: every frame convolved with bias, eight squares per map; e2 adds the mean over the filters.

    For 8 segments of 6 frames of 224 x 224 this gives the paper's Table I: 2.868 G (e1) and 2.884 G (e2). Depth 0 has no convolution:
    the three colours are squared, and with e2 averaged.
    """
    pixels = spec.segments * spec.height * spec.width
    maps = pixels * (spec.frames_per_segment - 1)
    channels = _FILTERS if depth else 3
    return pixels * spec.frames_per_segment * pa_parameters(depth) + maps * channels * (2 if encoding == "e2" else 1)


def pa_macs(spec: ClipSpec, *, depth: int = 1) -> int:
    """Count PA's MACs (e1) as flowless computes it: m - 1 convolutions of differences without bias, eight squares per map."""
    maps = spec.segments * (spec.frames_per_segment - 1) * spec.height * spec.width
    weights = pa_parameters(depth) - depth * _FILTERS
    return maps * (weights + (_FILTERS if depth else 3))


def projection_macs(module: PixelwiseTemporalProjection, *, height: int, width: int) -> int:
    """Count PWTP's MACs for one segment as its paper does: the convolution, the products of Eq. 3 and the MLP's weights.

    The paper's tables leave out biases, norms, upsampling and the projection itself, a few products per pixel. `count` also leaves out
    the products of Eq. 3, a hundredth of the module.
    """
    stride = module.describe.stride[0]
    positions = math.ceil(height / stride) * math.ceil(width / stride)
    mlp_weights = sum(layer.weight.numel() for layer in module.mlp.modules() if isinstance(layer, torch.nn.Conv2d))
    pair_products = len(module.first) * module.describe.out_channels
    return positions * (module.frames * module.describe.weight.numel() + pair_products + mlp_weights)


@register_flop_formula(torch.ops.flowless.persistence)
def _persistence_flops(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    filters, *taps = weight_shape
    return 2 * math.prod(out_shape) * filters * (math.prod(taps) + 1)


class _MacHook:
    """A forward hook that counts `taps` MACs for every output value."""

    def __init__(self, taps: int, macs: list[int]) -> None:
        self.taps, self.macs = taps, macs

    def __call__(self, module: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        self.macs.append(self.taps * out.numel())


def size_of(name: str, *, spec: ClipSpec, **config: Any) -> Size:
    """Count the model that `build_model` makes of the same arguments, without allocating its weights."""
    with torch.device("meta"):
        return count(build_model(name, spec=spec, **config))


def count(model: Recognizer) -> Size:
    """Count a model's parameters, and its MACs for one clip (convolutions, matrix products, PA), on the meta device.

    CSTM's channel-wise temporal convolution is computed with element-wise products and sums, which PyTorch's counter leaves out; it is
    counted as a convolution.
    """
    clip = torch.zeros((1, *model.spec.shape), dtype=torch.uint8, device="meta")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    meta_model = copy.deepcopy(model).eval().to("meta")
    temporal_macs: list[int] = []
    for module in meta_model.modules():
        if isinstance(module, ChannelwiseTemporalConv) and module.weight is not None:
            module.register_forward_hook(_MacHook(len(module.weight), temporal_macs))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta_model(clip)
    return Size(parameters=parameters, macs=counter.get_total_flops() // 2 + sum(temporal_macs))

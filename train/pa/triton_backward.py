"""Gradients of PA as Triton kernels: features are recomputed, a tile at a time, and never stored.

Let r be the gradient at a map divided by the map. Then the gradient at feature f is g_f = r * feature_f. From it follow:

- The weights' gradient, a matrix product over positions: windows of the difference, transposed, times g. Each of at most
  `PARTS` programs sums every `PARTS`-th tile in registers and writes one part; the parts are then added in order. Without atomic
  additions, a run with the same seed gives the same weights.
- The frames' gradient, the transposed convolution: a pixel of the difference gathers from 4 x 4 phase positions. A program computes the
  features of a tile with a halo, for the pairs of a stack in order, because a frame's gradient is that of the pair whose second frame it
  is minus that of the pair whose first frame it is.
"""

# Triton's constants are upper-case, a kernel's arguments are positional, and its parameters may be many.
# ruff: noqa: N803, PLR0913, PLR0917

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowless.train.pa.convolution_forms import motion_shape, phase_weight_gradient
from flowless.train.pa.triton_forward import (
    UNSPECIALISED,
    WEIGHT_SHAPE,
    difference_tile,
    launch,
    pair_offset,
    phase_features,
    precision,
    product,
    tiles_of,
)

#: Phase positions per tile of the weights' kernel, and its warps. ROWS x COLUMNS is the product's K: full float32 keeps its operands in
#: registers, and beyond 32 they are spilled.
WEIGHT_BLOCK = {"ROWS": 2, "COLUMNS": 16}
WEIGHT_WARPS = 8
#: Number of programs that share the tiles: enough to occupy the largest GPU, and the same on every GPU. A part is 24 KB.
PARTS = 512
#: The frames' kernel: a tile of SIDE x SIDE phase positions yields (SIDE - 3) x (SIDE - 3) groups of 2 x 2 pixels of the difference.
FRAME_BLOCK = {"SIDE": 16}
FRAME_WARPS = 8


@triton.jit
def feature_gradient(change, ratio, i, j, size, shift):
    """Return g `[P, 32]`, the gradient at the features, which are `change` minus `shift`; zero outside the frame."""
    phase = tl.arange(0, 4)[None, :]
    y, x = 2 * i[:, None] + phase // 2, 2 * j[:, None] + phase % 2
    inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
    share = tl.load(ratio + y * size[1] + x, mask=inside, other=0).to(tl.float32)
    grouped = tl.reshape(change - shift, (change.shape[0], 4, 8)) * share[:, :, None]
    return tl.reshape(grouped, (change.shape[0], 32))


@triton.jit
def window_product(frame, stride_frame, i, j, channel, size, strides, g, total, PRECISION: tl.constexpr):
    """Return `total + windows of one channel, transposed @ g`: `[64, P] @ [P, 32]`."""
    SPLIT: tl.constexpr = frame.dtype.element_ty == tl.uint8
    k = tl.arange(0, 64)[:, None]
    y, x = 2 * i[None, :] + k // 8 - 3, 2 * j[None, :] + k % 8 - 3
    at = channel * strides[0] + y * strides[1] + x * strides[2]
    return product(difference_tile(frame, stride_frame, y, x, at, size), g, total, SPLIT, PRECISION)


@triton.jit(do_not_specialize=(*UNSPECIALISED, "tiles"))
def weight_kernel(
    x_ptr,
    weight_ptr,
    ratio_ptr,
    pairs,
    height,
    width,
    stride_stack,
    stride_frame,
    stride_channel,
    stride_row,
    stride_column,
    tiles,
    out_ptr,
    shift,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum every n-th of `tiles` tiles, with n programs: parts `[n, 3 * 64, 32]` of the phase weights' gradient."""
    across = tl.cdiv(width, 2 * COLUMNS)
    per_map = across * tl.cdiv(height, 2 * ROWS)
    size, strides = (height, width), (stride_channel, stride_row, stride_column)
    p = tl.arange(0, ROWS * COLUMNS)
    first = tl.zeros((64, 32), dtype=tl.float32)
    second = tl.zeros((64, 32), dtype=tl.float32)
    third = tl.zeros((64, 32), dtype=tl.float32)
    for place in range(tl.program_id(0), tiles, tl.num_programs(0)):
        pair, tile = place // per_map, place % per_map
        i, j = tile // across * ROWS + p // COLUMNS, tile % across * COLUMNS + p % COLUMNS
        frame = x_ptr + pair_offset(pair, pairs, stride_stack, stride_frame)
        change = phase_features(frame, weight_ptr, stride_frame, i, j, size, strides, PRECISION)
        g = feature_gradient(change, ratio_ptr + pair.to(tl.int64) * height * width, i, j, size, shift)
        first = window_product(frame, stride_frame, i, j, 0, size, strides, g, first, PRECISION)
        second = window_product(frame, stride_frame, i, j, 1, size, strides, g, second, PRECISION)
        third = window_product(frame, stride_frame, i, j, 2, size, strides, g, third, PRECISION)
    at = tl.program_id(0) * (192 * 32) + tl.arange(0, 64)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(out_ptr + at, first)
    tl.store(out_ptr + 64 * 32 + at, second)
    tl.store(out_ptr + 128 * 32 + at, third)


@triton.jit
def gathered_weights(weight_ptr, down, right):
    """Load the weights `[32, 16]` from phase channels to the pixels (2a + b) * 4 + c of a group, for one of 4 x 4 neighbours.

    A group is the pixels (2i+1, 2j+1) to (2i+2, 2j+2), which are read by the same 4 x 4 positions, i-1 to i+2 and j-1 to j+2.
    """
    n = tl.arange(0, 32)[:, None]
    q = tl.arange(0, 16)[None, :]
    row = (4 + q // 8 - 2 * down - n // 16).to(tl.int32)
    column = (4 + q // 4 % 2 - 2 * right - n // 8 % 2).to(tl.int32)
    inside = (row >= 0) & (row < 7) & (column >= 0) & (column < 7) & (q % 4 < 3)
    at = ((n % 8) * 3 + q % 4) * 49 + row * 7 + column
    return tl.load(weight_ptr + at, mask=inside, other=0).to(tl.float32)


@triton.jit
def transposed(g, weight_ptr, SIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Return the gradient at the difference, `[SIDE * SIDE, 16]` groups of 2 x 2 pixels x (3 + 1) channels, from g `[SIDE * SIDE, 32]`.

    Only rows and columns 1 to SIDE - 3 of the tile are correct; the others lack neighbours.
    """
    p = tl.arange(0, SIDE * SIDE)
    total = tl.zeros((SIDE * SIDE, 16), dtype=tl.float32)
    for neighbour in range(16):
        down, right = neighbour // 4 - 1, neighbour % 4 - 1
        source = tl.minimum(tl.maximum(p + down * SIDE + right, 0), SIDE * SIDE - 1)
        index = tl.broadcast_to(source[:, None], (SIDE * SIDE, 32))
        beside = tl.gather(g, index, axis=0).to(OPERAND)
        total = product(beside, gathered_weights(weight_ptr, down, right), total, False, PRECISION)
    return total


@triton.jit
def store_group(target, value, i, j, usable, size, strides):
    """Store the groups of 2 x 2 pixels `value` `[P, 16]` that are `usable` and inside the frame."""
    q = tl.arange(0, 16)[None, :]
    y, x = 2 * i[:, None] + 1 + q // 8, 2 * j[:, None] + 1 + q // 4 % 2
    inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1]) & (q % 4 < 3) & usable[:, None]
    at = q % 4 * strides[0] + y * strides[1] + x * strides[2]
    tl.store(target + at, value.to(target.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def frame_kernel(
    x_ptr,
    weight_ptr,
    ratio_ptr,
    pairs,
    height,
    width,
    stride_stack,
    stride_frame,
    stride_channel,
    stride_row,
    stride_column,
    out_ptr,
    shift,
    PRECISION: tl.constexpr,
    SIDE: tl.constexpr,
):
    """Compute one tile of the gradient of all frames of a stack; `out` `[S, m, 3, H, W]` is contiguous."""
    size, strides = (height, width), (stride_channel, stride_row, stride_column)
    across = tl.cdiv(width // 2 + 1, SIDE - 3)
    tiles = across * tl.cdiv(height // 2 + 1, SIDE - 3)
    stack, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    p = tl.arange(0, SIDE * SIDE)
    down, right = p // SIDE, p % SIDE
    # The first group is at -1 (rows -1 and 0), at index 1 of the tile.
    i, j = tile // across * (SIDE - 3) - 2 + down, tile % across * (SIDE - 3) - 2 + right
    usable = (down >= 1) & (down <= SIDE - 3) & (right >= 1) & (right <= SIDE - 3)
    plane = tl.cast(height, tl.int64) * width
    target = out_ptr + stack.to(tl.int64) * (pairs + 1) * 3 * plane
    before = tl.zeros((SIDE * SIDE, 16), dtype=tl.float32)
    for index in range(pairs):
        pair = stack * pairs + index
        frame = x_ptr + pair_offset(pair, pairs, stride_stack, stride_frame)
        change = phase_features(frame, weight_ptr, stride_frame, i, j, size, strides, PRECISION)
        g = feature_gradient(change, ratio_ptr + pair.to(tl.int64) * plane, i, j, size, shift)
        behind = transposed(g, weight_ptr, SIDE, x_ptr.dtype.element_ty, PRECISION)
        store_group(target, before - behind, i, j, usable, size, (plane, width, 1))
        before = behind
        target += 3 * plane
    store_group(target, before, i, j, usable, size, (plane, width, 1))


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """The inputs of both kernels."""

    stacks: Tensor
    """Frames `[S, m, 3, H, W]`."""
    weight: Tensor
    ratio: Tensor

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pairs of a stack, height and width."""
        return motion_shape(self.stacks)[-3:]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The kernels' first arguments."""
        return (self.stacks, self.weight, self.ratio, *self.sizes, *self.stacks.stride())


def backward(ratio: Tensor, x: Tensor, weight: Tensor, shift: float, *, need_x: bool) -> tuple[Tensor | None, Tensor]:
    """Compute the gradients of PA with the Triton kernels.

    Args:
        ratio: `[..., m-1, H, W]` floating, the gradient at the output divided by the output.
        x: `[..., m, 3, H, W]` float32, float16, bfloat16 (or, without `need_x`, uint8), any strides.
        weight: `[8, 3, 7, 7]`.
        shift: Subtracted from each feature's change in the forward pass: eps with `eps_inside`, otherwise 0.
        need_x: Compute the gradient of the frames too.

    Returns:
        The gradients of `x` (None unless `need_x`) and of `weight`, in their dtypes.
    """
    inputs = _Inputs(stacks=x.reshape(-1, *x.shape[-4:]), weight=weight.contiguous(), ratio=ratio.contiguous())
    grad_weight = _weight_gradient(inputs, shift).to(weight.dtype)
    if not need_x:
        return None, grad_weight
    _, height, width = inputs.sizes
    grad_x = x.new_empty(x.shape)
    side = FRAME_BLOCK["SIDE"] - 3
    programs = inputs.stacks.shape[0] * tiles_of(height // 2 + 1, width // 2 + 1, (side, side))
    if grad_x.numel():
        constants = {"PRECISION": precision(x.dtype), "num_warps": FRAME_WARPS, **FRAME_BLOCK}
        launch(frame_kernel, programs, (*inputs.arguments, grad_x, shift), constants)
    return grad_x, grad_weight


def _weight_gradient(inputs: _Inputs, shift: float) -> Tensor:
    """Return the weights' gradient, float32 `[8, 3, 7, 7]`."""
    stacks, (pairs, height, width) = inputs.stacks, inputs.sizes
    block = WEIGHT_BLOCK
    tiles = stacks.shape[0] * pairs * tiles_of(height, width, (2 * block["ROWS"], 2 * block["COLUMNS"]))
    filters, channels, size, _ = WEIGHT_SHAPE
    parts = torch.empty((min(tiles, PARTS), channels, size + 1, size + 1, 4 * filters), dtype=torch.float32, device=stacks.device)
    if tiles:
        constants = {"PRECISION": precision(stacks.dtype), "num_warps": WEIGHT_WARPS, **block}
        launch(weight_kernel, len(parts), (*inputs.arguments, tiles, parts, shift), constants)
    return phase_weight_gradient(parts.sum(0).permute(3, 0, 1, 2), filters)

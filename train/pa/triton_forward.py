"""PA as one Triton kernel, from frames to maps without feature maps in memory.

It computes the phase form of `convolution_forms` as a matrix product. A program computes `ROWS x COLUMNS` phase positions, each of them
2 x 2 pixels of a map. It reads the 8 x 8 windows of the difference from both frames (with any strides, so frames `[.., H, W, C]` are not
copied), multiplies them by the 32 phase filters, and holds the 32 features of a position in registers until they are reduced to four
lengths. 32 columns fill a tensor core, 8 would not. Products are always accumulated in float32.

Type of the operands, by the frames' dtype:

- float32: full float32, or TF32 where PyTorch's `torch.backends.cuda.matmul` allows it.
- float16, bfloat16: the same; the difference and the weights are rounded to it.
- uint8: bfloat16. A difference is an integer within ±255, which 8 bits of mantissa represent exactly. The weights, which include the
  normalisation's scale and may be too small for float16, are split into a rounded part and its rounding error: two products, which
  keep 16 bits of a weight.
"""

# Triton's constants are upper-case, a kernel's arguments are positional, and its parameters may be many.
# ruff: noqa: N803, PLR0913, PLR0917

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from flowless.train.pa.convolution_forms import allows_tf32, motion_shape

#: The shape of the filters that the kernels support, the paper's.
WEIGHT_SHAPE = (8, 3, 7, 7)
#: Phase positions per program (each is 2 x 2 pixels), and its warps. ROWS x COLUMNS is the matrix product's M.
FORWARD_BLOCK = {"ROWS": 8, "COLUMNS": 16}
FORWARD_WARPS = 4
#: Most elements of a stack: offsets within it are 32-bit integers, of which half the range is left for tiles that exceed the frame.
_MOST_ELEMENTS = 2**30

#: Whether the kernels run in Triton's interpreter, on the CPU: `TRITON_INTERPRET=1` was set when Triton was first imported.
INTERPRETED = knobs.runtime.interpret
# The interpreter stores bfloat16 as bit patterns and would multiply those, so there rounded operands are converted to float32 first.
_WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def difference_tile(frame, stride_frame, y, x, at, size):
    """Load a tile of (next frame - this frame), zero outside the frame, in the operands' type.

    `frame` points to the earlier frame; `y`, `x` are the tile's rows and columns, `at` its offsets in elements, `size` the
    frame's (height, width).
    """
    inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
    first = tl.load(frame + at, mask=inside, other=0)
    then = tl.load(frame + stride_frame + at, mask=inside, other=0)
    if first.dtype == tl.uint8:
        # Subtracted as integers: converting the result costs less than converting both operands.
        difference = (then.to(tl.int32) - first.to(tl.int32)).to(tl.float32).to(tl.bfloat16)
    else:
        difference = (then.to(tl.float32) - first.to(tl.float32)).to(first.dtype)
    return difference


@triton.jit
def phase_weights(weight_ptr, channel, row, column, n):
    """Load phase filters as float32, for `row`, `column` (taps of the 8 x 8 window) and `n` (phase channels), broadcast.

    Phase channel n = (2a + b) * 8 + f is filter f, placed from row a and column b on (see `convolution_forms.phase_weight`).
    """
    row = row - n // 16
    column = column - n // 8 % 2
    inside = (row >= 0) & (row < 7) & (column >= 0) & (column < 7)
    at = ((n % 8) * 3 + channel) * 49 + row * 7 + column
    return tl.load(weight_ptr + at, mask=inside & (channel < 3), other=0).to(tl.float32)


@triton.jit
def product(a, b, total, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """Return `total + a @ b`, with `b` (float32) rounded to the type of `a`, or with `SPLIT` as the sum of two terms of that type."""
    high = b.to(a.dtype)
    if SPLIT:
        low = (b - high.to(tl.float32)).to(a.dtype)
        if _WIDEN:
            low, a = low.to(tl.float32), a.to(tl.float32)
        total = tl.dot(a, low, total, input_precision=PRECISION)
    if _WIDEN:
        high, a = high.to(tl.float32), a.to(tl.float32)
    return tl.dot(a, high, total, input_precision=PRECISION)


@triton.jit
def phase_features(frame, weight_ptr, stride_frame, i, j, size, strides, PRECISION: tl.constexpr):
    """Return the features `[P, 32]` of the phase positions `i`, `j` (`[P]`); `strides` are those of channel, row, column."""
    SPLIT: tl.constexpr = frame.dtype.element_ty == tl.uint8
    n = tl.arange(0, 32)[None, :]
    k = tl.arange(0, 16)
    position = (2 * i * strides[1] + 2 * j * strides[2])[:, None]
    total = tl.zeros((i.shape[0], 32), dtype=tl.float32)
    # Two rows of one channel's window at a time: 16 taps are the smallest K of half-precision tensor cores.
    for step in range(12):
        channel = step // 4
        row, column = step % 4 * 2 + k // 8, k % 8
        tap = channel * strides[0] + (row - 3) * strides[1] + (column - 3) * strides[2]
        y, x = 2 * i[:, None] + (row - 3)[None, :], 2 * j[:, None] + (column - 3)[None, :]
        difference = difference_tile(frame, stride_frame, y, x, position + tap[None, :], size)
        weights = phase_weights(weight_ptr, channel, row[:, None], column[:, None], n)
        total = product(difference, weights, total, SPLIT, PRECISION)
    return total


@triton.jit
def pair_offset(pair, pairs, stride_stack, stride_frame):
    """Return the offset of a pair's earlier frame, in 64 bits, because a batch may have more than 2^31 elements."""
    stack, frame = pair // pairs, pair % pairs
    return stack.to(tl.int64) * stride_stack + frame.to(tl.int64) * stride_frame


# Triton must not compile a kernel for each new value of these parameters, so that a new frame size needs no compilation. Only the stride of
# columns is specialised: it is 1 where the colours are separate planes.
UNSPECIALISED = ("pairs", "height", "width", "stride_stack", "stride_frame", "stride_channel", "stride_row")


@triton.jit(do_not_specialize=UNSPECIALISED)
def forward_kernel(
    x_ptr,
    weight_ptr,
    pairs,
    height,
    width,
    stride_stack,
    stride_frame,
    stride_channel,
    stride_row,
    stride_column,
    out_ptr,
    eps,
    EPS_INSIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute one tile of one map: from frames `[S, m, 3, H, W]` by strides, with `pairs` = m - 1, to contiguous `[S, m-1, H, W]`."""
    across = tl.cdiv(width, 2 * COLUMNS)
    tiles = across * tl.cdiv(height, 2 * ROWS)
    program = tl.program_id(0)
    pair, tile = program // tiles, program % tiles
    p = tl.arange(0, ROWS * COLUMNS)
    i, j = tile // across * ROWS + p // COLUMNS, tile % across * COLUMNS + p % COLUMNS
    frame = x_ptr + pair_offset(pair, pairs, stride_stack, stride_frame)
    size, strides = (height, width), (stride_channel, stride_row, stride_column)
    change = phase_features(frame, weight_ptr, stride_frame, i, j, size, strides, PRECISION)
    if EPS_INSIDE:
        change -= eps
    length = tl.sum(tl.reshape(change * change, (ROWS * COLUMNS, 4, 8)), axis=2)
    if not EPS_INSIDE:
        length += eps
    phase = tl.arange(0, 4)[None, :]
    y, x = 2 * i[:, None] + phase // 2, 2 * j[:, None] + phase % 2
    target = out_ptr + pair.to(tl.int64) * height * width + y * width + x
    tl.store(target, tl.sqrt_rn(length).to(out_ptr.dtype.element_ty), mask=(y < height) & (x < width))


def forward(x: Tensor, weight: Tensor, eps: float, *, eps_inside: bool = False) -> Tensor:
    """Compute PA with the Triton kernel.

    Args:
        x: `[..., m, 3, H, W]` float32, float16, bfloat16 or uint8, any strides.
        weight: `[8, 3, 7, 7]`, floating.
        eps: As in `persistence`.
        eps_inside: As in `persistence`.

    Returns:
        `[..., m-1, H, W]` in the dtype of `x`, for uint8 in that of `weight`.
    """
    stacks = x.reshape(-1, *x.shape[-4:])
    pairs, height, width = motion_shape(stacks)[-3:]
    out = x.new_empty(motion_shape(x), dtype=x.dtype if x.is_floating_point() else weight.dtype)
    block = FORWARD_BLOCK
    tiles = tiles_of(height, width, (2 * block["ROWS"], 2 * block["COLUMNS"]))
    if out.numel():
        launch(
            forward_kernel,
            stacks.shape[0] * pairs * tiles,
            (stacks, weight.contiguous(), pairs, height, width, *stacks.stride(), out, eps),
            {"EPS_INSIDE": eps_inside, "PRECISION": precision(x.dtype), "num_warps": FORWARD_WARPS, **block},
        )
    return out


def tiles_of(height: int, width: int, tile: tuple[int, int]) -> int:
    """Return the number of tiles that cover a frame."""
    return -(-height // tile[0]) * -(-width // tile[1])


def launch(kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Launch a kernel on the device of its first argument."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        # One stage: windows overlap, so the caches already hold what software pipelining would prefetch.
        kernel[(programs,)](*arguments, num_stages=1, **constants)


def precision(dtype: torch.dtype) -> str:
    """Return `input_precision` of Triton's products for frames of a dtype: TF32 only where PyTorch is set to allow it."""
    return "tf32" if dtype == torch.float32 and allows_tf32() else "ieee"


def supports(x: Tensor, weight: Tensor) -> bool:
    """Return whether the kernels support these tensors; they support neither float64 nor other filters than `[8, 3, 7, 7]`."""
    if tuple(weight.shape) != WEIGHT_SHAPE or weight.dtype == torch.float64:
        return False
    stack = x.shape[-4:]
    span = sum((length - 1) * stride for length, stride in zip(stack, x.stride()[-4:], strict=True))
    return x.dtype in {torch.float32, torch.float16, torch.bfloat16, torch.uint8} and max(span, stack.numel()) < _MOST_ELEMENTS

"""Persistence of Appearance (PA) in plain PyTorch, as two exact forms of one convolution.

For adjacent frames of a stack, PA is the Euclidean length, over eight learnt filters, of the change of their features
(PAN, Eq. 4 and 5):

    PA[i, h, w] = sqrt(sum_f (conv_f(x[i+1] - x[i])[h, w])^2 + eps)

The paper convolves both frames and subtracts. A convolution is linear, so convolving the difference gives the same
numbers: the bias cancels, and m - 1 convolutions replace m.

*By pixels*: a 7x7 convolution to 8 channels with stride 1. Eight output channels do not fill a matrix unit.

*By phases*: output pixels (2i+a, 2j+b), for a and b in {0, 1}, all read the same 8x8 window of the input, with the 7x7
kernel placed at offset (a, b). So one 8x8 convolution to 4 x 8 channels with stride 2 computes all four; squares are summed
over each group of 8, and the four groups are interleaved (depth to space). The result is exact, with 8*8/(7*7) times the
multiplications, and matrix units run several times faster.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["pixels", "phases"]

#: Largest allowed error of a map or gradient against the formula in float64 on the same inputs, relative to its largest value. Every
#: implementation of the op accumulates in float32 or wider. The errors come from rounding the operands of the products: none in float32
#: and float64; TF32 rounds both to 10 bits; with uint8 frames the Triton kernels round a weight to 16 bits; float16 and bfloat16 round
#: the weight, the difference and the result to 11 and 8 bits.
TOLERANCES = {"float64": 1e-12, "float32": 2e-6, "tf32": 2e-3, "uint8": 5e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def allows_tf32() -> bool:
    """Return whether PyTorch is set to compute float32 products in TF32, with 10 bits of mantissa, on a GPU's tensor cores."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def differences(frames: Tensor) -> Tensor:
    """Return the differences of adjacent frames: `[S, m, C, H, W]` to `[S * (m-1), C, H, W]`, in the same memory layout."""
    return (frames[:, 1:] - frames[:, :-1]).flatten(0, 1)


def phase_weight(weight: Tensor) -> Tensor:
    """Place a kernel at the four offsets of the phase form.

    Args:
        weight: `[F, C, k, k]`, k odd (PA: `[8, 3, 7, 7]`).

    Returns:
        `[4F, C, k+1, k+1]`: output channels `(2a+b) * F` to `(2a+b) * F + F - 1` hold the kernel from row a and column b on, padded
        with zeros.
    """
    return torch.cat([F.pad(weight, (b, 1 - b, a, 1 - a)) for a in (0, 1) for b in (0, 1)])


def phase_weight_gradient(gradient: Tensor, filters: int) -> Tensor:
    """Sum the gradient of a `phase_weight` `[4F, C, k+1, k+1]` to that of the kernel `[F, C, k, k]`."""
    size = gradient.shape[-1] - 1
    parts = gradient.split(filters)
    placed = [parts[2 * a + b][..., a : a + size, b : b + size] for a in (0, 1) for b in (0, 1)]
    return torch.stack(placed).sum(0)


def pad_to_even(difference: Tensor) -> Tensor:
    """Pad an odd H or W by a row of zeros at the bottom or a column at the right, which the convolution's padding would give anyway."""
    height, width = difference.shape[-2:]
    return F.pad(difference, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else difference


def features(difference: Tensor, weight: Tensor, form: Form) -> Tensor:
    """Convolve differences `[K, C, H, W]`.

    Returns:
        By pixels `[K, F, H, W]`; by phases `[K, 4F, ceil(H/2), ceil(W/2)]`.
    """
    padding = weight.shape[-1] // 2
    if form == "pixels":
        return F.conv2d(difference, weight, padding=padding)
    return F.conv2d(pad_to_even(difference), phase_weight(weight), stride=2, padding=padding)


def lengths(features: Tensor, filters: int, eps: float, *, eps_inside: bool = False) -> Tensor:
    """Return the length of each group of `filters` channels: `[K, G * filters, h, w]` to `[K, G, h, w]`.

    Args:
        features: Output of `features`.
        filters: Channels in a group, F.
        eps: Added under the root, or with `eps_inside` to the signed change of every channel before squaring.
        eps_inside: Add eps as the official code does; it subtracts the later frame from the earlier one, hence the minus here.
    """
    if features.dtype in {torch.float16, torch.bfloat16}:
        # In float16 the squares would overflow long before the lengths.
        return lengths(features.float(), filters, eps, eps_inside=eps_inside).to(features.dtype)
    grouped = features.unflatten(1, (-1, filters))
    if eps_inside:
        return (grouped - eps).square().sum(2).sqrt()
    return (grouped.square().sum(2) + eps).sqrt()


def interleave(phases: Tensor, height: int, width: int) -> Tensor:
    """Interleave the four phases `[K, 4, ceil(H/2), ceil(W/2)]` to maps `[K, H, W]` (depth to space, then crop)."""
    return F.pixel_shuffle(phases, 2)[:, 0, :height, :width]


def persistence_by_pixels(frames: Tensor, weight: Tensor, eps: float, *, eps_inside: bool = False) -> Tensor:
    """Compute PA by pixels, as the formula reads: `[..., m, C, H, W]` to `[..., m-1, H, W]`; autograd stores its features."""
    stacks = frames.flatten(0, -5) if frames.dim() > 4 else frames[None]
    change = features(differences(stacks), weight, "pixels")
    return lengths(change, weight.shape[0], eps, eps_inside=eps_inside).reshape(motion_shape(frames))


def persistence_by_phases(frames: Tensor, weight: Tensor, eps: float, *, eps_inside: bool = False) -> Tensor:
    """Compute PA by phases: the same numbers as `persistence_by_pixels`, also with plain operators only."""
    stacks = frames.flatten(0, -5) if frames.dim() > 4 else frames[None]
    height, width = frames.shape[-2:]
    change = features(differences(stacks), weight, "phases")
    phases = lengths(change, weight.shape[0], eps, eps_inside=eps_inside)
    return interleave(phases, height, width).reshape(motion_shape(frames))


def motion_shape(frames: Tensor) -> tuple[int, ...]:
    """Return the shape of the maps, `[..., m-1, H, W]`, for frames `[..., m, C, H, W]`."""
    return (*frames.shape[:-4], frames.shape[-4] - 1, *frames.shape[-2:])

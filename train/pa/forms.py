"""The arithmetic of Persistence of Appearance (PA): two exact forms of one formula, in plain PyTorch.

For adjacent frames of a stack, PA is the length, over eight learnt filters, of the change of a shallow feature
(paper, Eq. 4 and 5):

    PA[i, h, w] = sqrt(sum_f (conv_f(x[i+1] - x[i])[h, w])^2 + eps)

The paper convolves both frames and subtracts; a convolution is linear, so convolving the difference once gives the same
numbers, the bias cancels, and m - 1 convolutions do the work of m.

*By pixels*: a 7x7 convolution to 8 channels at stride 1. Eight output channels starve a matrix unit.

*By phases*: output pixels (2i+a, 2j+b), for a and b in {0, 1}, all see the same 8x8 window of the input, with the 7x7
kernel placed at offset (a, b). So one 8x8 convolution to 4 x 8 channels at stride 2 gives all of them; squares are summed
over each group of 8, and the four groups are interleaved (depth to space). The result is exact, the multiplications are
8*8/(7*7) as many, and matrix units run several times faster.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["pixels", "phases"]

#: Largest error of a map or gradient against the formula in float64 on the same inputs, as a part of its largest value. Every
#: body of the op sums in float32 or wider, whatever it multiplies. What is left is the rounding of the product's operands:
#: none in float32 and float64; TF32 cuts both to 10 bits; with uint8 frames the Triton kernels hold a weight in 16 bits;
#: float16 and bfloat16 round the weight, the difference and the result to 11 and 8 bits.
TOLERANCES = {"float64": 1e-12, "float32": 2e-6, "tf32": 2e-3, "uint8": 5e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def allows_tf32() -> bool:
    """Whether the user lets a GPU's tensor cores compute float32 products in TF32, 10 bits of mantissa."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def differences(frames: Tensor) -> Tensor:
    """Return what changed between adjacent frames: `[S, m, C, H, W]` to `[S * (m-1), C, H, W]`, memory layout kept."""
    return (frames[:, 1:] - frames[:, :-1]).flatten(0, 1)


def phase_weight(weight: Tensor) -> Tensor:
    """Place a kernel at the four offsets of the phase form.

    Args:
        weight: `[F, C, k, k]`, k odd (PA: `[8, 3, 7, 7]`).

    Returns:
        `[4F, C, k+1, k+1]`: output channels `(2a+b) * F` and the F-1 that follow hold the kernel at rows from a and
        columns from b, zeros around it.
    """
    return torch.cat([F.pad(weight, (b, 1 - b, a, 1 - a)) for a in (0, 1) for b in (0, 1)])


def phase_weight_gradient(gradient: Tensor, filters: int) -> Tensor:
    """Gather the gradient of a `phase_weight` `[4F, C, k+1, k+1]` into that of the kernel `[F, C, k, k]`: the transpose."""
    size = gradient.shape[-1] - 1
    parts = gradient.split(filters)
    placed = [parts[2 * a + b][..., a : a + size, b : b + size] for a in (0, 1) for b in (0, 1)]
    return torch.stack(placed).sum(0)


def even(difference: Tensor) -> Tensor:
    """Add a row or column of zeros at the bottom or right where H or W is odd: what zero padding would read anyway."""
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
    return F.conv2d(even(difference), phase_weight(weight), stride=2, padding=padding)


def lengths(features: Tensor, filters: int, eps: float, *, eps_inside: bool = False) -> Tensor:
    """Return the length of each group of `filters` channels: `[K, G * filters, h, w]` to `[K, G, h, w]`.

    Args:
        features: Output of `features`.
        filters: Channels in a group, F.
        eps: Added under the root, or with `eps_inside` to the signed change of every channel before squaring.
        eps_inside: The official code's rule; it subtracts the later frame from the earlier, hence the minus here.
    """
    if features.dtype in {torch.float16, torch.bfloat16}:
        # Squares leave float16's range long before lengths do.
        return lengths(features.float(), filters, eps, eps_inside=eps_inside).to(features.dtype)
    grouped = features.unflatten(1, (-1, filters))
    if eps_inside:
        return (grouped - eps).square().sum(2).sqrt()
    return (grouped.square().sum(2) + eps).sqrt()


def interleave(phases: Tensor, height: int, width: int) -> Tensor:
    """Put the four phases `[K, 4, ceil(H/2), ceil(W/2)]` where they belong: `[K, H, W]` (depth to space, then the crop)."""
    return F.pixel_shuffle(phases, 2)[:, 0, :height, :width]


def persistence_by_pixels(frames: Tensor, weight: Tensor, eps: float, *, eps_inside: bool = False) -> Tensor:
    """Compute PA as the formula reads: `[..., m, C, H, W]` to `[..., m-1, H, W]`; differentiable, storing its features."""
    stacks = frames.flatten(0, -5) if frames.dim() > 4 else frames[None]
    change = features(differences(stacks), weight, "pixels")
    return lengths(change, weight.shape[0], eps, eps_inside=eps_inside).reshape(motion_shape(frames))


def persistence_by_phases(frames: Tensor, weight: Tensor, eps: float, *, eps_inside: bool = False) -> Tensor:
    """Compute PA by phases: the same numbers; plain operators only, so it traces and exports."""
    stacks = frames.flatten(0, -5) if frames.dim() > 4 else frames[None]
    height, width = frames.shape[-2:]
    change = features(differences(stacks), weight, "phases")
    phases = lengths(change, weight.shape[0], eps, eps_inside=eps_inside)
    return interleave(phases, height, width).reshape(motion_shape(frames))


def motion_shape(frames: Tensor) -> tuple[int, ...]:
    """Return `[..., m-1, H, W]` for frames `[..., m, C, H, W]`."""
    return (*frames.shape[:-4], frames.shape[-4] - 1, *frames.shape[-2:])

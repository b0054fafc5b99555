"""The PA op, `torch.ops.flowless.persistence`, and the module with its filters.

The op stores neither the eight feature maps nor the differences for the backward pass: it recomputes them, a chunk at a time. Plain
autograd would store eight feature maps for each PA map.

There are two implementations: PyTorch's convolutions, and for NVIDIA GPUs (compute capability 8.0 and later) the Triton kernels of
`triton_forward`, which keep feature maps in registers. The faster one runs: Triton for the forward pass where its products run on tensor
cores (uint8, half precision, TF32); PyTorch for full float32, where Triton takes 1.4 times as long, and for every backward pass, where it
takes 1.5 to 2.7 times as long (256 stacks of 4 frames of 224 x 224 on an H200, `bench/results/gpu-h200.json`, `persistence`). PyTorch also
runs what the kernels do not support: float64, and filters other than `[8, 3, 7, 7]`. The environment variable `FLOWLESS_PA=torch` or
`FLOWLESS_PA=triton` forces one of them for both passes.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor, nn
from torch.library import custom_op, register_autocast

from flowless.errors import FlowlessError
from flowless.train.pa.convolution_forms import (
    Form,
    allows_tf32,
    differences,
    features,
    interleave,
    lengths,
    motion_shape,
    pad_to_even,
    phase_weight,
    phase_weight_gradient,
)

__all__ = ["EPS", "OFFICIAL_EPS", "PersistenceOfAppearance", "persistence", "phase_weight"]

#: Added under the root: small against any motion, large enough that identical frames have a finite gradient.
EPS = 1e-12
#: The official code's eps, added to each channel's difference (with `eps_inside`).
OFFICIAL_EPS = 1e-6
#: Feature values in a chunk: few enough for a processor's cache, enough to occupy a GPU.
_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}
#: Side of a frame in pixels from which the phase form is faster.
_PHASES_FROM = 8


@custom_op("flowless::persistence", mutates_args=())
def persistence(x: Tensor, weight: Tensor, eps: float, eps_inside: bool = False) -> Tensor:
    """Persistence of Appearance of stacks of frames (paper, Eq. 4 and 5).

    Args:
        x: `[..., m, C, H, W]`, the frames of a stack in time order: floating, or uint8 pixels.
        weight: `[F, C, k, k]`, of the dtype of `x`, or floating for uint8. The paper's is `[8, 3, 7, 7]`.
        eps: Added under the root, or with `eps_inside` to every channel's difference.
        eps_inside: Add eps as the official code does, for its checkpoints.

    Returns:
        `[..., m-1, H, W]` of the weight's dtype: how much each position changed from frame i to frame i+1.
    """
    _check(x, weight)
    if implementation(x, weight) == "triton":
        from flowless.train.pa import triton_forward

        return triton_forward.forward(x, weight, eps, eps_inside=eps_inside)
    stacks = x.reshape(-1, *x.shape[-4:])
    out = weight.new_empty((stacks.shape[0], *motion_shape(x)[-3:]))
    form = _form(x)
    for part in _chunks(stacks, weight):
        change = features(differences(stacks[part].to(weight.dtype)), weight, form)
        length = lengths(change, weight.shape[0], eps, eps_inside=eps_inside)
        maps = interleave(length, *x.shape[-2:]) if form == "phases" else length[:, 0]
        out[part] = maps.unflatten(0, (-1, x.shape[-4] - 1))
    return out.reshape(motion_shape(x))


@custom_op("flowless::persistence_backward", mutates_args=())
def persistence_backward(ratio: Tensor, x: Tensor, weight: Tensor, eps: float, eps_inside: bool, need_x: bool) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `persistence` with respect to `x` (empty unless `need_x`) and `weight`.

    `ratio` `[..., m-1, H, W]` is the gradient at the output divided by the output. As d out / d feature = feature / out, it is the same
    for all filters.
    """
    shift = eps if eps_inside else 0.0
    if implementation(x, weight, backward=True) == "triton":
        from flowless.train.pa import triton_backward

        frames, kernel = triton_backward.backward(ratio, x, weight, shift, need_x=need_x)
        return x.new_empty(0) if frames is None else frames, kernel
    stacks = x.reshape(-1, *x.shape[-4:])
    ratio = ratio.reshape(-1, *ratio.shape[-3:])
    grad_weight = torch.zeros_like(weight)
    grad_x = torch.zeros_like(stacks) if need_x else x.new_empty(0)
    form = _form(x)
    with torch.autocast(x.device.type, enabled=False):
        for part in _chunks(stacks, weight):
            change, kernel = _chunk_backward(stacks[part].to(weight.dtype), ratio[part], weight, shift=shift, form=form, need_x=need_x)
            grad_weight += kernel
            if need_x:
                by_stack = change.unflatten(0, (-1, x.shape[-4] - 1))
                grad_x[part, 1:] += by_stack
                grad_x[part, :-1] -= by_stack
    return grad_x.reshape(x.shape) if need_x else grad_x, grad_weight


def _chunk_backward(stacks: Tensor, ratio: Tensor, weight: Tensor, *, shift: float, form: Form, need_x: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of one chunk with respect to the differences (anything unless `need_x`) and to the kernel.

    Args:
        stacks: Frames `[S, m, C, H, W]`, floating.
        ratio: `[S, m-1, H, W]`, see `persistence_backward`.
        weight: `[F, C, k, k]`.
        shift: Subtracted from each feature's change before squaring: eps with `eps_inside`, otherwise 0.
        form: The form in which the features are computed.
        need_x: Whether the gradient of the frames is needed.
    """
    difference = differences(stacks)
    ratio = ratio.flatten(0, 1)[:, None]
    filters, padding = weight.shape[0], weight.shape[-1] // 2
    height, width = difference.shape[-2:]
    if form == "phases":
        difference, weight, stride = pad_to_even(difference), phase_weight(weight), 2
        ratio = torch.nn.functional.pixel_unshuffle(pad_to_even(ratio), 2)
    else:
        stride = 1
    change = torch.nn.functional.conv2d(difference, weight, stride=stride, padding=padding)
    if shift:
        change -= shift
    change.unflatten(1, (-1, filters)).mul_(ratio[:, :, None])
    grad_difference, grad_weight, _ = torch.ops.aten.convolution_backward(
        change,
        difference,
        weight,
        None,
        [stride, stride],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        1,
        [need_x, True, False],
    )
    if form == "phases":
        grad_weight = phase_weight_gradient(grad_weight, filters)
    return grad_difference[..., :height, :width] if need_x else change, grad_weight


def implementation(x: Tensor, weight: Tensor, *, backward: bool = False) -> Literal["torch", "triton"]:
    """Return the implementation that computes PA of these tensors, or its gradients: the faster one, or that in `FLOWLESS_PA`.

    Raises:
        FlowlessError: `FLOWLESS_PA` is neither of the two, or forces Triton for tensors or a device that it does not support.
    """
    forced = os.environ.get("FLOWLESS_PA", "")
    if forced not in {"", "torch", "triton"}:
        raise FlowlessError(f"FLOWLESS_PA is {forced!r}; it must be 'torch' or 'triton', or not be set, to choose the faster one.")
    if forced == "torch" or (forced != "triton" and (backward or not x.is_cuda or (x.dtype == torch.float32 and not allows_tf32()))):
        return "torch"
    reason = _why_not_triton(x, weight)
    if forced == "triton" and reason:
        raise FlowlessError(f"FLOWLESS_PA=triton: {reason}. Leave FLOWLESS_PA unset, to use PyTorch there.")
    return "torch" if reason else "triton"


def _why_not_triton(x: Tensor, weight: Tensor) -> str:
    """Return the reason why the Triton kernels do not support these tensors; empty if they do."""
    if not _has_triton():
        return "Triton is not installed (PyTorch installs it on Linux)"
    from flowless.train.pa.triton_forward import INTERPRETED, supports

    if not supports(x, weight):
        return (
            f"its kernels take float32, float16, bfloat16 or uint8 frames and a weight [8, 3, 7, 7], not {x.dtype} and {list(weight.shape)}"
        )
    if not x.is_cuda:
        return "" if INTERPRETED else f"the frames are on {x.device}, and Triton needs a GPU (or its interpreter: TRITON_INTERPRET=1)"
    if torch.version.hip or _capability(x.device.index) < (8, 0):
        return "its kernels need an NVIDIA GPU of compute capability 8.0 or later"
    return ""


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _form(x: Tensor) -> Form:
    """Return the faster form: phases, except for frames so small that the 8x8 windows are mostly padding."""
    return "phases" if min(x.shape[-2:]) >= _PHASES_FROM else "pixels"


def _chunks(stacks: Tensor, weight: Tensor) -> list[slice]:
    """Split the stacks into chunks of at most `_CHUNK` feature values."""
    count, frames, _, height, width = stacks.shape
    per_stack = (frames - 1) * weight.shape[0] * height * width
    step = max(1, _CHUNK.get(stacks.device.type, _CHUNK["cuda"]) // max(1, per_stack))
    return [slice(start, start + step) for start in range(0, count, step)]


def _check(x: Tensor, weight: Tensor) -> None:
    if x.dim() < 4 or x.shape[-4] < 2 or not (x.is_floating_point() or x.dtype == torch.uint8):
        raise FlowlessError(
            f"persistence: frames are {x.dtype} {list(x.shape)}; they must be floating or uint8 [..., m, C, H, W] with m of at least 2."
        )
    if not weight.is_floating_point() or (x.is_floating_point() and x.dtype != weight.dtype):
        wanted = f"{x.dtype}, as the frames are" if x.is_floating_point() else "floating"
        raise FlowlessError(f"persistence: the weight is {weight.dtype}; it must be {wanted}.")
    if weight.dim() != 4 or weight.shape[1] != x.shape[-3] or weight.shape[-1] != weight.shape[-2] or not weight.shape[-1] % 2:
        raise FlowlessError(
            f"persistence: the weight is {list(weight.shape)}; for frames of {x.shape[-3]} channels it must be "
            f"[filters, {x.shape[-3]}, k, k] with k odd."
        )


@persistence.register_fake
def _(x: Tensor, weight: Tensor, eps: float, eps_inside: bool = False) -> Tensor:
    return weight.new_empty(motion_shape(x))


@persistence_backward.register_fake
def _(ratio: Tensor, x: Tensor, weight: Tensor, eps: float, eps_inside: bool, need_x: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else (0,)), torch.empty_like(weight)


def _setup_context(ctx, inputs: tuple[Tensor, Tensor, float, bool], output: Tensor) -> None:
    x, weight, ctx.eps, ctx.eps_inside = inputs
    ctx.save_for_backward(x, weight, output)


def _backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
    x, weight, out = ctx.saved_tensors
    # Divided in float32: the smallest output is the root of eps, 1e-6, and dividing by it in float16 would overflow.
    ratio = gradient.to(torch.promote_types(out.dtype, torch.float32)) / out
    grad_x, grad_weight = persistence_backward(ratio, x, weight, ctx.eps, ctx.eps_inside, ctx.needs_input_grad[0])
    return grad_x if ctx.needs_input_grad[0] else None, grad_weight, None, None


persistence.register_autograd(_backward, setup_context=_setup_context)
# PA stays in single precision under autocast: bf16's 8 bits of mantissa would lose small differences between pixels.
for _device in ("cpu", "cuda"):
    register_autocast("flowless::persistence", _device, torch.float32)


class PersistenceOfAppearance(nn.Module):
    """The PA module: eight 7x7 filters, from stacks of m frames to m - 1 PA maps.

    1,184 parameters as the paper counts them (8 x 3 x 7 x 7 weights and 8 biases). The bias cancels in encoding e1; it exists, without
    a gradient, so that official checkpoints load and the number of parameters is the paper's.

    Args:
        encoding: `e1`, the maps themselves (the paper's choice), or `e2`, the sigmoid of each map times the mean feature
            map of the pair's first frame (PAN, Eq. 7).
        eps_inside: Add eps as the official code does, for its checkpoints.
        std: Standard deviation of the initial filters; the official code's is 0.001.
    """

    def __init__(self, *, encoding: Literal["e1", "e2"] = "e1", eps_inside: bool = False, std: float = 0.001) -> None:
        super().__init__()
        if encoding not in {"e1", "e2"}:
            raise FlowlessError(f"PA: encoding is {encoding!r}; it must be 'e1' (maps as channels) or 'e2' (maps as attention).")
        self.encoding = encoding
        self.eps_inside = eps_inside
        self.weight = nn.Parameter(torch.empty(8, 3, 7, 7).normal_(0, std))
        self.bias = nn.Parameter(torch.zeros(8), requires_grad=encoding == "e2")

    def motion(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        """Return the PA maps `[..., m-1, H, W]` of frames `[..., m, 3, H, W]`.

        Args:
            x: Normalised frames; or pixels 0 to 255, with `scale`.
            scale: `[3]`, the factor of the normalisation for each colour, 1 / (255 std). The normalisation's mean cancels in the
                difference, so pixels with scaled filters give the same maps, and differences of pixels are exact integers.
        """
        weight = self.weight if scale is None else self.weight * scale.view(1, 3, 1, 1)
        eps = OFFICIAL_EPS if self.eps_inside else EPS
        return torch.ops.flowless.persistence(x, weight, eps, self.eps_inside)

    def forward(self, x: Tensor, motion: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]` and their maps to the network's input, `[B, N, m-1, H, W]`."""
        if self.encoding == "e1":
            return motion
        # The mean over the filters is linear too: convolving with the mean filter gives the mean feature map.
        kernel, bias = self.weight.mean(0, keepdim=True), self.bias.mean(0, keepdim=True)
        first = x[..., :-1, :, :, :]
        mean = torch.nn.functional.conv2d(first.flatten(0, -4), kernel, bias, padding=3)
        return motion.sigmoid() * mean.reshape(motion.shape)

"""Pixel-wise temporal projection (PWTP): the static part of T frames is projected out, pixel by pixel, and motion remains.

Huang and Bors, Dynamic Appearance: A Video Representation for Action Recognition with Joint Training, 2022; section 3.1 and
3.2, appendix C. The T values of a pixel are a vector in R^T. From the similarity of the frames a small network predicts, for every
pixel, D vectors that span its static part; the residual of the projection onto them is the pixel's dynamic part.

The projection needs no matrix inverse: the D columns are orthogonalised one after another (Gram-Schmidt), with products, sums and one
division per column. For independent columns that equals Eq. 1; every engine can run it, and dependent columns give no NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.train.models.layers.deep_persistence import single_precision

#: Added to a column's squared length before dividing by it: a column of zeros, or one in the span of the columns before it, then
#: contributes nothing instead of NaN. At lengths near 1 it leaves a millionth of the static part.
EPS = 1e-6
#: The paper tried subspaces of 1 to 3 dimensions (Table 4b).
MOST_SUBSPACE = 3


@dataclass(frozen=True, kw_only=True)
class MLPShape:
    """The network that predicts the columns from similarities (appendix C, Table 8); the default is configuration 7, the paper's choice."""

    bottleneck: float = 0.25
    """Width inside a block relative to the width outside (beta); rounded up."""
    blocks: int = 1
    """Number of residual blocks (B)."""
    expansion: int = 2
    """Width of the network relative to its number of inputs (r)."""


#: The seven configurations of Table 8. Its sixth row gives a beta, which has no effect without a block.
MLP_SHAPES = {
    1: MLPShape(bottleneck=0.25, blocks=1, expansion=4),
    2: MLPShape(bottleneck=0.25, blocks=1, expansion=1),
    3: MLPShape(bottleneck=0.25, blocks=2, expansion=1),
    4: MLPShape(bottleneck=0.25, blocks=2, expansion=4),
    5: MLPShape(bottleneck=1.0, blocks=1, expansion=4),
    6: MLPShape(bottleneck=0.25, blocks=0, expansion=4),
    7: MLPShape(bottleneck=0.25, blocks=1, expansion=2),
}


class PixelwiseTemporalProjection(nn.Module):
    """PWTP: maps the T frames of a segment to one image of dynamic appearance.

    Args:
        frames: T, the frames of a segment, at least 2.
        subspace: D, the dimensions of the static subspace, 1 to 3 and at most T / 2 (section 4.2: beyond it accuracy drops).
        kernel: Side k of the convolution that describes each frame's neighbourhoods, odd.
        stride: Its stride s; the columns are computed on this coarser grid and upsampled.
        channels: Its number of filters C'.
        mlp: The network after it.

    Raises:
        FlowlessError: T and D do not fit.
    """

    #: Stays in float32 in every engine: it divides by squared lengths.
    exact = True

    first: Tensor
    second: Tensor

    def __init__(
        self, frames: int, *, subspace: int = 1, kernel: int = 9, stride: int = 8, channels: int = 24, mlp: MLPShape | None = None
    ) -> None:
        super().__init__()
        if not 1 <= subspace <= MOST_SUBSPACE or 2 * subspace > frames:
            raise FlowlessError(
                f"PWTP: da_subspace is {subspace} for segments of {frames} frames; it must be 1 to {MOST_SUBSPACE}, at most half of the "
                f"frames (the paper's choice: 1 of 8)."
            )
        self.frames = frames
        self.subspace = subspace
        self.describe = nn.Conv2d(3, channels, kernel, stride=stride, padding=kernel // 2)
        self.mlp = _mlp(frames * (frames - 1) // 2, frames * subspace, mlp or MLPShape())
        pairs = torch.combinations(torch.arange(frames, device="cpu"), 2)
        self.register_buffer("first", pairs[:, 0], persistent=False)
        self.register_buffer("second", pairs[:, 1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the dynamic appearance (Eq. 6) of frames `[K, T, 3, H, W]`: `[K, 3, H, W]`, float32 (or float64, as x).

        It is the mean of the residual over time, computed without the residual: P is symmetric, so the mean of x - P x is the product of
        x with 1 - P 1, divided by T. That is a weighted sum of the frames, with weights for each pixel.
        """
        with single_precision(x):
            columns = self.columns(x)
            weights = 1 - _sum(column * (column.sum(1, keepdim=True) / length) for column, length in columns)
            return (x * weights[:, :, None]).sum(1) / self.frames

    def residual(self, x: Tensor) -> Tensor:
        """Return the projection's residual (Eq. 5) of frames `[K, T, 3, H, W]`: the same shape, float32 (or float64, as x)."""
        with single_precision(x):
            static = [
                column[:, :, None] * ((column[:, :, None] * x).sum(1, keepdim=True) / length[:, :, None])
                for column, length in self.columns(x)
            ]
            return x - _sum(static)

    def columns(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the D orthogonal columns of every pixel: each `[K, T, H, W]`, with its squared length plus eps, `[K, 1, H, W]`."""
        spanning = self._spanning(x)
        columns: list[tuple[Tensor, Tensor]] = []
        for index in range(self.subspace):
            # Channel t * D + d belongs to frame t and column d (Eq. 4: TD is reshaped to T x D).
            raw = spanning[:, index :: self.subspace] if self.subspace > 1 else spanning
            column = raw
            for other, length in columns:
                column = column - other * ((other * raw).sum(1, keepdim=True) / length)
            columns.append((column, column.square().sum(1, keepdim=True) + EPS))
        return columns

    def similarity(self, x: Tensor) -> Tensor:
        """Return the similarity of each pair of frames at each position (Eq. 3): `[K, T, 3, H, W]` to `[K, T (T - 1) / 2, h, w]`."""
        described = self.describe(x.flatten(0, 1)).unflatten(0, (-1, self.frames))
        return (described.index_select(1, self.first) * described.index_select(1, self.second)).mean(2)

    def _spanning(self, x: Tensor) -> Tensor:
        """Return A (Eq. 4), `[K, T * D, H, W]`, upsampled unless the stride is 1."""
        coarse = self.mlp(self.similarity(x))
        return coarse if self.describe.stride == (1, 1) else F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)


def enopr(residual: Tensor) -> Tensor:
    """Return the squared Euclidean norm over T of projection residuals `[K, T, C, H, W]`, averaged over K, C, H, W (Eq. 7 and 8)."""
    return residual.square().sum(1).mean()


class Bottleneck(nn.Module):
    """A residual block of the MLP: batch norm, a layer that reduces the features, and one that restores them (appendix C, Fig. 7)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.reduce = nn.Conv2d(width, inner, 1)
        self.restore = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[K, width, h, w]` to the same shape."""
        return x + F.gelu(self.restore(F.gelu(self.reduce(self.norm(x)))))


def _mlp(inputs: int, outputs: int, shape: MLPShape) -> nn.Sequential:
    """Return the MLP; its fully-connected layers are 1x1 convolutions, since it is applied at every position of the grid."""
    width = shape.expansion * inputs
    blocks = [Bottleneck(width, math.ceil(shape.bottleneck * width)) for _ in range(shape.blocks)]
    return nn.Sequential(nn.Conv2d(inputs, width, 1), nn.GELU(), *blocks, nn.Conv2d(width, outputs, 1))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Add tensors without starting from zero, which would add a node to the graph."""
    first, *others = parts
    for other in others:
        first = first + other
    return first

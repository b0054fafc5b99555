"""Displacement maps between feature maps, and warping along them (sections 3.3 and 3.4).

Zhao, Xiong and Lin, Recognize Actions by Disentangling Components of Dynamics, CVPR 2018.

The paper's expectation over a softmax of similarities (Eq. 1 and 2) is local attention whose values are positions:
v = sum_k softmax(q . k / tau) position(k) - position(q). So it is computed as attention, in blocks of 2D x 2D queries for a
window of D cells in each direction. The keys of a block are the 4D x 4D cells of the block and half a block around it. Two matrix
products and a softmax replace the (2D + 1)^2 shifted products of the usual form. They compute up to 3.2 times as many similarities as
necessary (D = 4), but are faster: 41 instead of 519 nodes of a graph, and for seven pairs of [64, 112, 112] on one core 0.30 s instead
of 2.6 s in ONNX Runtime, 0.12 s instead of 0.98 s in OpenVINO.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowless.errors import FlowlessError
from flowless.train.models.options import DisentanglingOptions

#: The window D and the temperature tau; the paper's are in a supplement that was not available. A window of 9 x 9 cells reaches
#: 8 pixels in each direction at 112 x 112 cells of a 224 x 224 frame. The temperature was chosen by shifting images by known amounts, up
#: to 2.5 cells, with random filters in the first convolution. On textured regions of frames of three videos the median error is 0.55
#: cells at 0.01, 0.69 at 0.02, 0.92 at 0.05, 1.07 at 0.1; predicting no motion has 1.02. On noise smoothed over 3 pixels the mean error
#: of a coordinate is 0.12 at 0.01, 0.11 at 0.02, 0.19 at 0.05, 0.33 at 0.1. Lower temperatures round to whole cells and leave most
#: similarities without a gradient; higher ones pull every displacement to the middle of the window.
WINDOW = DisentanglingOptions.displacement_window
TEMPERATURE = DisentanglingOptions.displacement_temperature
#: Largest window.
MOST_WINDOW = 16

#: Added to a similarity to mask it in the softmax: its exp is 0. Finite in fp16 even when added twice, so that no NaN arises.
_MASKED = -1e4
#: Added to a squared length, so that a feature of zeros has a gradient; such a feature is equally similar to all.
_EPS = 1e-6


class Displacement(nn.Module):
    """Computes the displacement map of two feature maps: for each cell the expected position of its match (Eq. 1 and 2). No parameters.

    The similarity of two cells is the cosine of their features. Cells outside the frame or the window are not matched.

    Args:
        window: Largest displacement in cells in each direction, the paper's Delta H = Delta W.
        temperature: The paper's tau: a smaller one comes nearer to the single best match.
    """

    #: Stays in float32 in every engine: similarities differ by hundredths and are divided by the temperature.
    exact = True

    near: Tensor
    query_places: Tensor
    key_places: Tensor

    def __init__(self, *, window: int = WINDOW, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        if not 1 <= window <= MOST_WINDOW or not 0.001 <= temperature <= 10:
            raise FlowlessError(
                f"displacement: window is {window}, temperature {temperature}; they must be from 1 to {MOST_WINDOW} and from 0.001 to 10."
            )
        self.window = window
        self.temperature = temperature
        side = 2 * window
        queries, keys = torch.arange(side), torch.arange(2 * side) - window
        near = (queries[:, None] - keys).abs() <= window
        mask = torch.where(near[:, None, :, None] & near[None, :, None, :], 0.0, _MASKED)
        # Positions are relative to the block's centre: half precision rounds small numbers less.
        centre = (side - 1) / 2
        self.register_buffer("near", mask.reshape(side**2, 4 * side**2), persistent=False)
        self.register_buffer("query_places", torch.cartesian_prod(queries, queries) - centre, persistent=False)
        self.register_buffer("key_places", torch.cartesian_prod(keys, keys) - centre, persistent=False)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the displacement of each cell of `before` to its match in `after`.

        Args:
            before: `[K, C, H, W]`, feature maps at time t.
            after: `[K, C, H, W]`, at t + 1.

        Returns:
            `[K, 2, H, W]`, float32, in cells: the cell (i, j) of `before` moves to (i + map[0], j + map[1]) of `after`.
        """
        kind = before.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            # Similarities differ by hundredths and are divided by tau: bf16's 8 bits are too few.
            with torch.autocast(kind, enabled=False):
                return self.forward(before.float(), after.float())
        if torch.is_grad_enabled() and (before.requires_grad or after.requires_grad):
            # Stored for the backward pass, the similarities would take the most memory of all; computing them again costs little.
            result = checkpoint(self._expectation, before, after, use_reentrant=False)
            assert isinstance(result, Tensor)
            return result
        return self._expectation(before, after)

    def _expectation(self, before: Tensor, after: Tensor) -> Tensor:
        height, width = before.shape[-2:]
        side = 2 * self.window
        rows, columns = -(-height // side), -(-width // side)
        spare = (0, columns * side - width, 0, rows * side - height)
        # In one more channel a key has the mask if it lies outside the frame, and every query has 1.
        queries = F.pad(_unit(before) / self.temperature, (*spare, 0, 1), value=1.0)
        queries = queries.unflatten(2, (rows, side)).unflatten(4, (columns, side))
        queries = queries.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)
        keys = self._keys(_unit(after), rows=rows, columns=columns)
        share = (queries @ keys + self.near).softmax(-1)
        moved = share @ self.key_places - self.query_places
        moved = moved.unflatten(0, (-1, rows, columns)).unflatten(3, (side, side)).permute(0, 5, 1, 3, 2, 4)
        return moved.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]

    def _keys(self, features: Tensor, *, rows: int, columns: int) -> Tensor:
        """Cut `[K, C, H, W]` into overlapping blocks: `[K * rows * columns, C + 1, (4D)^2]`."""
        height, width = features.shape[-2:]
        window, side = self.window, 2 * self.window
        around = (window, columns * side + window - width, window, rows * side + window - height)
        outside = F.pad(torch.zeros_like(features[:, :1]), around, value=_MASKED)
        keys = torch.cat([F.pad(features, around), outside], dim=1)
        # In the padded map, with a margin of half a block, a block's keys are the block at the same index and the next one, in rows and in
        # columns. (Slices and concatenations, since an overlapping unfold is exported as gathers, which OpenVINO has computed wrongly.)
        low, high = keys[:, :, :-side], keys[:, :, side:]
        keys = torch.cat([low.unflatten(2, (rows, side)), high.unflatten(2, (rows, side))], dim=3)
        left, right = keys[..., :-side], keys[..., side:]
        keys = torch.cat([left.unflatten(4, (columns, side)), right.unflatten(4, (columns, side))], dim=5)
        return keys.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(0, 2)


def warp(features: Tensor, displacement: Tensor) -> Tensor:
    """Warp features along a displacement map: the paper's W(F_t, V_t), an estimate of F_{t+1}.

    The map gives the displacement of the features at (i, j), not of those that arrive there. As usual, the motion at the target
    position is used for the motion at the source: the result at p is `features` at p - map(p), interpolated bilinearly; cells outside the
    frame count as zero.

    Args:
        features: `[K, C, H, W]`.
        displacement: `[K, 2, H, W]`, rows first, in cells.

    Returns:
        `[K, C, H, W]`.
    """
    height, width = features.shape[-2:]
    kind = torch.promote_types(features.dtype, torch.float32)
    like = {"dtype": kind, "device": features.device}
    # grid_sample's coordinates are -1 and 1 at the frame's outer edges, columns first.
    x = (2 * torch.arange(width, **like) + 1) / width - 1
    y = (2 * torch.arange(height, **like) + 1) / height - 1
    rows, columns = displacement[:, :1], displacement[:, 1:]
    source = torch.cat([x - columns * (2 / width), y[:, None] - rows * (2 / height)], dim=1).permute(0, 2, 3, 1)
    return F.grid_sample(features.to(kind), source.to(kind), mode="bilinear", padding_mode="zeros", align_corners=False).to(features.dtype)


def warped_differences(before: Tensor, after: Tensor, displacement: Tensor) -> Tensor:
    """Return the change that motion does not explain, F_{t+1} - W(F_t, V_t) (section 3.4): `[K, C, H, W]`, signed."""
    return after - warp(before, displacement)


def resized_displacement(displacement: Tensor, like: Tensor) -> Tensor:
    """Resize displacement maps to the grid of the features that are to be warped, and scale them to its cells.

    Args:
        displacement: `[K, 2, h, w]`, rows first, in cells.
        like: The features, `[K, C, H, W]`.

    Returns:
        `[K, 2, H, W]`, in cells of that grid; `displacement` itself if it has that size.
    """
    (height, width), (rows, columns) = like.shape[-2:], displacement.shape[-2:]
    if (height, width) == (rows, columns):
        return displacement
    factors = torch.tensor([height / rows, width / columns], dtype=displacement.dtype, device=displacement.device)
    return F.interpolate(displacement, size=(height, width), mode="bilinear", align_corners=False) * factors.view(2, 1, 1)


def _unit(features: Tensor) -> Tensor:
    return features * (features.square().sum(1, keepdim=True) + _EPS).rsqrt()

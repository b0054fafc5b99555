"""Where each feature goes, and what is left of it there: cost volume, displacement map and warping (sections 3.3 and 3.4).

Zhao, Xiong and Lin, Recognize Actions by Disentangling Components of Dynamics, CVPR 2018.

The paper's expectation over a softmax of similarities (Eq. 1 and 2) is local attention whose values are positions:
v = sum_k softmax(q . k / tau) position(k) - position(q). So it is computed as attention, in blocks of 2D x 2D queries for a
window of D cells each way: a block's keys then are the 4D x 4D cells of it and its neighbours, four blocks side by side. Two
matrix products and a softmax stand for the (2D + 1)^2 shifted products of the usual form. They compute up to 3.2 times the
similarities that are needed (D = 4), and are the faster for it: 41 nodes of a graph and not 519, and for seven pairs of
[64, 112, 112] on one core 0.30 s and not 2.6 s in ONNX Runtime, 0.12 s and not 0.98 s in OpenVINO.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowless.errors import FlowlessError
from flowless.train.models.options import DisentanglingOptions

#: The window D and the temperature tau; the paper's are in a supplement that could not be had. A window of 9 x 9 cells reaches
#: 8 pixels each way at 112 x 112 cells of a 224 x 224 frame. The temperature was chosen by moving pictures by known amounts, up to
#: 2.5 cells, before a first convolution of random filters. Frames of three videos, where there is texture, median error: 0.55
#: cells at 0.01, 0.69 at 0.02, 0.92 at 0.05, 1.07 at 0.1, and 1.02 for no motion at all. Noise smooth over 3 pixels, mean error
#: of a coordinate: 0.12 at 0.01, 0.11 at 0.02, 0.19 at 0.05, 0.33 at 0.1. Lower ones round to whole cells and leave most
#: similarities without a gradient; higher ones draw everything to the middle of the window.
WINDOW = DisentanglingOptions.displacement_window
TEMPERATURE = DisentanglingOptions.displacement_temperature
#: Largest window: four blocks of it are the keys of one.
MOST_WINDOW = 16

#: Takes a similarity out of the softmax: exp of it is 0. A finite number, of fp16 even when doubled, so that nothing is NaN.
_NEVER = -1e4
#: Added to a squared length, so that a feature of zeros has a gradient; it matches everything alike.
_EPS = 1e-6


class Displacement(nn.Module):
    """The displacement map of two feature maps: for each cell the expected place of its match (Eq. 1 and 2). No parameters.

    The similarity of two cells is the cosine of their features. What lies outside the frame or the window is no match.

    Args:
        window: Cells that a feature may move each way, the paper's Delta H = Delta W.
        temperature: The paper's tau: the smaller, the nearer to the winner taking all.
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
        mask = torch.where(near[:, None, :, None] & near[None, :, None, :], 0.0, _NEVER)
        # Places count from a block's centre: the smaller, the less half precision rounds them.
        centre = (side - 1) / 2
        self.register_buffer("near", mask.reshape(side**2, 4 * side**2), persistent=False)
        self.register_buffer("query_places", torch.cartesian_prod(queries, queries) - centre, persistent=False)
        self.register_buffer("key_places", torch.cartesian_prod(keys, keys) - centre, persistent=False)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return where each cell of `before` lies in `after`.

        Args:
            before: `[K, C, H, W]`, feature maps at time t.
            after: `[K, C, H, W]`, at t + 1.

        Returns:
            `[K, 2, H, W]`, float32, in cells: what is at (i, j) of `before` is at (i + map[0], j + map[1]) of `after`.
        """
        kind = before.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            # Similarities differ by hundredths and are divided by tau: too little for 8 bits.
            with torch.autocast(kind, enabled=False):
                return self.forward(before.float(), after.float())
        if torch.is_grad_enabled() and (before.requires_grad or after.requires_grad):
            # All similarities of a step would be the largest thing in memory; computing them again costs little.
            result = checkpoint(self._expectation, before, after, use_reentrant=False)
            assert isinstance(result, Tensor)
            return result
        return self._expectation(before, after)

    def _expectation(self, before: Tensor, after: Tensor) -> Tensor:
        height, width = before.shape[-2:]
        side = 2 * self.window
        rows, columns = -(-height // side), -(-width // side)
        spare = (0, columns * side - width, 0, rows * side - height)
        # One more channel says whether a key lies in the frame; every query has 1 there.
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
        outside = F.pad(torch.zeros_like(features[:, :1]), around, value=_NEVER)
        keys = torch.cat([F.pad(features, around), outside], dim=1)
        # With a margin of half a block, a block's keys are the block at its place and the next one, downwards and to the right.
        # (Slices and joins: an overlapping unfold exports as gathers, which OpenVINO has got wrong.)
        low, high = keys[:, :, :-side], keys[:, :, side:]
        keys = torch.cat([low.unflatten(2, (rows, side)), high.unflatten(2, (rows, side))], dim=3)
        left, right = keys[..., :-side], keys[..., side:]
        keys = torch.cat([left.unflatten(4, (columns, side)), right.unflatten(4, (columns, side))], dim=5)
        return keys.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(0, 2)


def warp(features: Tensor, displacement: Tensor) -> Tensor:
    """Move features along a displacement map: the paper's W(F_t, V_t), an estimate of F_{t+1}.

    The map says where the features at (i, j) go to, not where those come from that arrive there. As is usual the motion of the
    target place stands for the motion of the source: the result at p is `features` at p - map(p). Between cells it is
    bilinear; cells outside the frame count as zero.

    Args:
        features: `[K, C, H, W]`.
        displacement: `[K, 2, H, W]`, rows first, in cells.

    Returns:
        `[K, C, H, W]`.
    """
    height, width = features.shape[-2:]
    kind = torch.promote_types(features.dtype, torch.float32)
    place = {"dtype": kind, "device": features.device}
    # grid_sample counts from -1 to 1 between a frame's outer edges, columns first.
    across = (2 * torch.arange(width, **place) + 1) / width - 1
    down = (2 * torch.arange(height, **place) + 1) / height - 1
    rows, columns = displacement[:, :1], displacement[:, 1:]
    source = torch.cat([across - columns * (2 / width), down[:, None] - rows * (2 / height)], dim=1).permute(0, 2, 3, 1)
    return F.grid_sample(features.to(kind), source.to(kind), mode="bilinear", padding_mode="zeros", align_corners=False).to(features.dtype)


def warped_differences(before: Tensor, after: Tensor, displacement: Tensor) -> Tensor:
    """Return what motion does not explain, F_{t+1} - W(F_t, V_t) (section 3.4): `[K, C, H, W]`, signed."""
    return after - warp(before, displacement)


def resized_displacement(displacement: Tensor, like: Tensor) -> Tensor:
    """Stretch displacement maps to the cells of what is to be warped by them.

    Args:
        displacement: `[K, 2, h, w]`, rows first, in cells.
        like: `[K, C, H, W]`.

    Returns:
        `[K, 2, H, W]`, in cells of that grid; the map itself where it has that size.
    """
    (height, width), (rows, columns) = like.shape[-2:], displacement.shape[-2:]
    if (height, width) == (rows, columns):
        return displacement
    factors = torch.tensor([height / rows, width / columns], dtype=displacement.dtype, device=displacement.device)
    return F.interpolate(displacement, size=(height, width), mode="bilinear", align_corners=False) * factors.view(2, 1, 1)


def _unit(features: Tensor) -> Tensor:
    return features * (features.square().sum(1, keepdim=True) + _EPS).rsqrt()

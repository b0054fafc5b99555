"""A vision transformer over a clip: the patches of all segments in one sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import resample_abs_pos_embed  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.train.models.backbones.timm_backbones import TRANSFORMER, TRANSFORMER_WEIGHTS, from_timm, timm_name, widen

#: Side of a patch, in pixels.
PATCH = 16
#: Side of the frames that the pretrained table of positions was trained for, in pixels.
_PRETRAINED_SIDE = 224


class Blocks(nn.Sequential):
    """timm's transformer blocks, attention and MLP: `[B, tokens, D]` to the same shape."""

    #: Nearly all arithmetic is in their matrix products, which tolerate lower precision as another network's convolutions do.
    matrix_backbone = True


class ClipTransformer(nn.Module):
    """ViT-B/16 over the frames of a clip (Dynamic Appearance, section 3.3).

    Every patch of every segment is a token of one sequence; the table of positions is repeated for each segment; there is no
    class token, and the last layer's tokens of a segment are averaged. Nothing encodes which segment a token belongs to, so the network
    is blind to the order of segments.

    Args:
        height: Height of a frame.
        width: Width of a frame.
        scale: Factor on the 768 features and 12 heads of ViT-B.
        blocks: Number of transformer blocks; 0 is the 12 of ViT-B.
        pretrained: Start from timm's weights (from its cache, or a download): True for ImageNet-21K, or timm's tag.
        pretrained_path: Start from ViT-B/16 weights in this file.
        inputs: Channels of each segment's image. Where they are not 3, the slices of a pretrained patch embedding are its mean over
            RGB, as a first convolution's are (see `timm_backbones.widen`).

    Attributes:
        num_features: Length of a segment's vector, 768 at scale 1.
    """

    #: It takes all segments of a clip together (see `Network`).
    whole_clips = True

    def __init__(
        self,
        *,
        height: int,
        width: int,
        scale: float = 1.0,
        blocks: int = 0,
        pretrained: bool | str = False,
        pretrained_path: str | Path | None = None,
        inputs: int = 3,
    ) -> None:
        super().__init__()
        self.grid = (height // PATCH, width // PATCH)
        if min(self.grid) < 1:
            raise FlowlessError(f"da-vit: a frame is {height} x {width}; it must hold a patch of {PATCH} x {PATCH}. Take larger frames.")
        heads = max(1, round(12 * scale))
        options: dict[str, Any] = {"embed_dim": 64 * heads, "num_heads": heads, **({"depth": blocks} if blocks else {})}
        from_weights = bool(pretrained) or pretrained_path is not None
        if from_weights and scale != 1.0:
            raise FlowlessError(f"width is {scale}; pretrained weights exist for width 1 only. Train from scratch, or use width 1.")
        options |= {"img_size": _PRETRAINED_SIDE} if from_weights else {"img_size": (height, width), "in_chans": inputs}
        name = timm_name(TRANSFORMER, pretrained, default_tag=TRANSFORMER_WEIGHTS)
        model = cast(Any, from_timm(name, classifier="head.", pretrained=bool(pretrained), pretrained_path=pretrained_path, **options))
        self.num_features = 64 * heads
        self.patch = model.patch_embed.proj
        if from_weights and inputs != 3:
            self.patch.weight = nn.Parameter(widen(self.patch.weight.detach(), inputs))
            self.patch.in_channels = inputs
        self.blocks = Blocks(*model.blocks)
        self.norm = model.norm
        # The first row of timm's table is the class token's.
        positions = model.pos_embed.detach()[:, 1:]
        side = _PRETRAINED_SIDE // PATCH
        self.positions = nn.Parameter(_resampled(positions, (side, side), self.grid) if from_weights else positions.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Encode the frames of a clip together: `[B, N, inputs, H, W]` to one vector per segment, `[B, N, num_features]`."""
        patches = self.patch(x.flatten(0, 1))
        positions = _resampled(self.positions, self.grid, (patches.shape[2], patches.shape[3]))
        tokens = patches.flatten(2).transpose(1, 2) + positions
        count = tokens.shape[1]
        sequence = tokens.unflatten(0, (-1, x.shape[1])).flatten(1, 2)
        return self.norm(self.blocks(sequence)).unflatten(1, (-1, count)).mean(2)


def _resampled(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a table of positions `[1, rows * columns, D]` to another grid."""
    if old == new:
        return positions
    with torch.no_grad() if not positions.requires_grad else torch.enable_grad():
        return resample_abs_pos_embed(positions, new_size=list(new), old_size=list(old), num_prefix_tokens=0)

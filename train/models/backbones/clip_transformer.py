"""A vision transformer over a clip: the patches of all segments in one sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import resample_abs_pos_embed  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.train.models.backbones.backbone import TRANSFORMER, TRANSFORMER_WEIGHTS, from_timm, tagged, widen

#: Side of a patch, in pixels.
PATCH = 16
#: Frames that the pretrained table of positions is for.
_NATIVE = 224


class Blocks(nn.Sequential):
    """Attention and perceptron in turn, timm's blocks: `[B, tokens, D]` to the same."""

    #: Nearly all arithmetic is in their matrix products, which lose precision as another network's convolutions do.
    matrix_backbone = True


class ClipTransformer(nn.Module):
    """ViT-B/16 over the frames of a clip (Dynamic Appearance, section 3.3).

    Every patch of every segment is a token of one sequence; the table of positions is repeated for each segment; there is no
    class token, and what the last layer says of a segment's patches is averaged. So it does not see in which order segments
    come: nothing says which segment a token is of.

    Args:
        height: Rows of a frame.
        width: Columns of a frame.
        scale: Factor on the 768 features and 12 heads of ViT-B.
        blocks: Pairs of attention and perceptron; 0 is the 12 of ViT-B.
        pretrained: Start from timm's ImageNet-21K weights (its cache, or a download), or those of timm's tag.
        pretrained_path: Start from ViT-B/16 weights in this file.
        inputs: Channels of each segment's picture. Where they are not 3, the slices of a pretrained patch embedding are its mean over
            RGB, as a first convolution's are (see `backbone.widen`).

    Attributes:
        num_features: Length of a segment's vector, 768 at scale 1.
    """

    #: It takes a clip's segments together (see `Network`).
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
            raise FlowlessError(f"da-vit: a frame is {height} x {width}; a patch takes {PATCH} x {PATCH} pixels. Take larger frames.")
        heads = max(1, round(12 * scale))
        options: dict[str, Any] = {"embed_dim": 64 * heads, "num_heads": heads, **({"depth": blocks} if blocks else {})}
        wanted = bool(pretrained) or pretrained_path is not None
        if wanted and scale != 1.0:
            raise FlowlessError(f"width is {scale}; pretrained weights exist for width 1 only. Train from scratch, or use width 1.")
        options |= {"img_size": _NATIVE} if wanted else {"img_size": (height, width), "in_chans": inputs}
        name = tagged(TRANSFORMER, pretrained, usual=TRANSFORMER_WEIGHTS)
        model = cast(Any, from_timm(name, classifier="head.", pretrained=bool(pretrained), pretrained_path=pretrained_path, **options))
        self.num_features = 64 * heads
        self.patch = model.patch_embed.proj
        if wanted and inputs != 3:
            self.patch.weight = nn.Parameter(widen(self.patch.weight.detach(), inputs))
            self.patch.in_channels = inputs
        self.blocks = Blocks(*model.blocks)
        self.norm = model.norm
        # The first row of timm's table is the class token's.
        positions = model.pos_embed.detach()[:, 1:]
        side = _NATIVE // PATCH
        self.positions = nn.Parameter(_resampled(positions, (side, side), self.grid) if wanted else positions.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Encode the frames of a clip together: `[B, N, inputs, H, W]` to one vector a segment, `[B, N, num_features]`."""
        patches = self.patch(x.flatten(0, 1))
        positions = _resampled(self.positions, self.grid, (patches.shape[2], patches.shape[3]))
        tokens = patches.flatten(2).transpose(1, 2) + positions
        count = tokens.shape[1]
        sequence = tokens.unflatten(0, (-1, x.shape[1])).flatten(1, 2)
        return self.norm(self.blocks(sequence)).unflatten(1, (-1, count)).mean(2)


def _resampled(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Stretch a table of positions `[1, rows * columns, D]` to another grid."""
    if old == new:
        return positions
    with torch.no_grad() if not positions.requires_grad else torch.enable_grad():
        return resample_abs_pos_embed(positions, new_size=list(new), old_size=list(old), num_prefix_tokens=0)

"""Grad-CAM: the places in each segment whose features raise a class's score.

Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowless.errors import FlowlessError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowless.train.models import Recognizer

#: Fewest rows and columns of a map. The last stage has a stride of 32, so frames of 48 x 48 leave it 2 x 2 places, too few to localise
#: anything. On Moving Shapes of that size the last stage's maps correlate with where something moves by 0.06 to 0.14, those of stage 2
#: (6 x 6 places) by 0.33 to 0.46 (STM, DA-TSM, PAN-Lite; 40 videos).
MIN_PLACES = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchMaps:
    """One branch's Grad-CAM of some clips, for one class."""

    branch: str
    """The branch's name, such as `pa`; empty where the model has a single one."""
    layer: str
    """Path in the model of the layer whose output is weighted, such as `backbone.layer4`."""
    values: NDArray[np.float32]
    """`[B, N, h, w]`, of the layer's resolution, at least 0."""


def branch_of(path: str) -> str:
    """Return the name of a branch by its head's path: `pa` for `branches.pa.head`, empty for `head`, the only one."""
    return path.rpartition(".")[0].rpartition(".")[2]


def feature_layers(backbone: nn.Module) -> list[str]:
    """Return the paths of the layers of a backbone that Grad-CAM can use, in the order of the network.

    ResNets: the four stages. BN-Inception: its four, which end at pool2, 3c, 4e and 5b. X3D: the stages, and the convolution after the
    last. ViT: the norm before the last block's attention, the usual choice; a token is the place of its patch.
    """
    from flowless.train.models.backbones.bn_inception import BNInception, InceptionStages
    from flowless.train.models.backbones.vision_transformer import ClipTransformer
    from flowless.train.models.backbones.x3d import X3D, Block

    if isinstance(backbone, BNInception | InceptionStages):
        body = "body." if isinstance(backbone, BNInception) else ""
        return [f"{body}stages.{stage}" for stage in range(4)]
    if isinstance(backbone, X3D):
        blocks = [block for block in backbone.blocks if isinstance(block, Block)]
        strided = [number for number, block in enumerate(blocks) if number and block.mix.stride[1] > 1]
        return [*(f"blocks.{number - 1}" for number in strided), "last"]
    if isinstance(backbone, ClipTransformer):
        return [f"blocks.{len(backbone.blocks) - 1}.norm1"]
    return [f"layer{stage}" for stage in range(1, 5)]


def grad_cam(model: Recognizer, clip: Tensor, *, index: int) -> tuple[BranchMaps, ...]:
    """Weight every branch's feature maps by the gradient of one class's score (Eq. 1 and 2).

    Of `feature_layers` the last with at least 4 x 4 places is used; if the frames are too small for any, the first. The maps of each
    segment are weighted by their own gradient, averaged over the places. Where a segment has several (one for each frame or pair of
    frames, in Disentangling's branches) the weighted maps are added. Negative sums become 0.

    Args:
        model: Any model, in evaluation mode.
        clip: uint8 `[B, N, m, H, W, 3]`, on the model's device.
        index: The class, counted from 0.

    Returns:
        The branches' maps, in the order of `branch_scores`.

    Raises:
        FlowlessError: The clip is not what the model takes, or there is no such class.
    """
    import torch

    paths = {id(module): path for path, module in model.named_modules()}
    leaves: dict[str, tuple[str, Tensor]] = {}

    def replace_by_leaf(_: nn.Module, __: Any, out: Tensor, *, branch: str, layer: str) -> Tensor | None:
        # Autograd needs only the layers after the features: the graph begins at this layer, and anew at a later one with enough places.
        if branch in leaves and min(_by_segment(out, model, clip).shape[-2:]) < MIN_PLACES:
            return None
        leaves[branch] = (layer, out.detach().requires_grad_())
        return leaves[branch][1]

    with torch.enable_grad(), ExitStack() as stack:
        for head in model.heads:
            parent = paths[id(head)].rpartition(".")[0]
            path = f"{parent}.network" if hasattr(model.get_submodule(parent), "network") else f"{parent}.backbone".lstrip(".")
            for layer in (f"{path}.{name}" for name in feature_layers(model.get_submodule(path))):
                hook = partial(replace_by_leaf, branch=branch_of(paths[id(head)]), layer=layer)
                stack.callback(model.get_submodule(layer).register_forward_hook(hook).remove)
        scores = model(clip)
    if not 0 <= index < scores.shape[1]:
        raise FlowlessError(f"Grad-CAM: class {index} of a model of {scores.shape[1]}; it must be from 0 to {scores.shape[1] - 1}.")
    gradients = torch.autograd.grad(scores[:, index].sum(), [features for _, features in leaves.values()])
    maps = []
    for (branch, (layer, features)), gradient in zip(leaves.items(), gradients, strict=True):
        weights = _by_segment(gradient, model, clip).mean((4, 5), keepdim=True)
        values = (weights * _by_segment(features.detach(), model, clip)).sum((2, 3)).relu()
        maps.append(BranchMaps(branch=branch, layer=layer, values=values.cpu().numpy()))
    return tuple(maps)


def _by_segment(features: Tensor, model: Recognizer, clip: Tensor) -> Tensor:
    """Return a layer's features as `[B, N, K, C, h, w]`: K maps of C channels for each segment."""
    segments = model.spec.segments
    if features.dim() == 5:  # X3D, [B, C, N, h, w]
        return features.movedim(2, 1)[:, :, None]
    if features.dim() == 3:  # ViT, [B, N * h * w, C]
        from flowless.train.models.backbones.vision_transformer import PATCH

        grid = (clip.shape[3] // PATCH, clip.shape[4] // PATCH)
        return features.unflatten(1, (segments, *grid)).movedim(-1, 2)[:, :, None]
    return features.unflatten(0, (len(clip), segments, -1))

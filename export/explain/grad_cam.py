"""Grad-CAM: where in each segment a network's feature maps speak for a class.

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

#: Fewest rows and columns of a map: the last stage sees one pixel of 32, and 2 x 2 places of a frame of 48 x 48 show nothing. On Moving
#: Shapes of that size the last stage's maps had a correlation of 0.06 to 0.14 with where something moves, those of stage 2 (6 x 6
#: places) of 0.33 to 0.46 (STM, DA-TSM, PAN-Lite; 40 videos).
LEAST_PLACES = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchMaps:
    """One branch's Grad-CAM of some clips, for one class."""

    branch: str
    """The branch's name, such as `pa`; empty where there is one alone."""
    layer: str
    """The layer whose output is weighed: its path in the model, such as `backbone.layer4`."""
    values: NDArray[np.float32]
    """`[B, N, h, w]`, of the layer's own size: 0 where nothing speaks for the class, and the larger the more."""


def branch_of(path: str) -> str:
    """Return the name of a branch by its head's path: `pa` for `branches.pa.head`, nothing for `head`, which is the only one."""
    return path.rpartition(".")[0].rpartition(".")[2]


def feature_layers(backbone: nn.Module) -> list[str]:
    """Return the paths of a backbone's layers whose output Grad-CAM may weigh, the first in the network first.

    ResNets: the four stages. BN-Inception: its four, which end at pool2, 3c, 4e and 5b. X3D: the stages, and the convolution behind the
    last. ViT: the norm before the last block's attention, the usual choice; a token is the place of its patch.
    """
    from flowless.train.models.backbones.bn_inception import BNInception, InceptionStages
    from flowless.train.models.backbones.clip_transformer import ClipTransformer
    from flowless.train.models.backbones.x3d import X3D, Block

    if isinstance(backbone, BNInception | InceptionStages):
        body = "body." if isinstance(backbone, BNInception) else ""
        return [f"{body}stages.{stage}" for stage in range(4)]
    if isinstance(backbone, X3D):
        blocks = [block for block in backbone.blocks if isinstance(block, Block)]
        halving = [number for number, block in enumerate(blocks) if number and block.mix.stride[1] > 1]
        return [*(f"blocks.{number - 1}" for number in halving), "last"]
    if isinstance(backbone, ClipTransformer):
        return [f"blocks.{len(backbone.blocks) - 1}.norm1"]
    return [f"layer{stage}" for stage in range(1, 5)]


def grad_cam(model: Recognizer, clip: Tensor, *, index: int) -> tuple[BranchMaps, ...]:
    """Weigh every branch's feature maps by the gradient of one class's score (Eq. 1 and 2).

    Of the layers of `feature_layers` the last with 4 x 4 places or more is taken; of frames too small for any, the first. Every
    segment's maps are weighed by the gradient of their own, averaged over their places. Where a segment has several (one for each frame
    or pair of frames, in Disentangling's branches) the weighted maps are added up. Negative sums become 0.

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
    begun: dict[str, tuple[str, Tensor]] = {}

    def begin(_: nn.Module, __: Any, out: Tensor, *, branch: str, layer: str) -> Tensor | None:
        # The gradient needs the network behind the layer alone: it begins here, and again at a later layer that has places enough.
        if branch in begun and min(_by_segment(out, model, clip).shape[-2:]) < LEAST_PLACES:
            return None
        begun[branch] = (layer, out.detach().requires_grad_())
        return begun[branch][1]

    with torch.enable_grad(), ExitStack() as stack:
        for head in model.heads:
            around = paths[id(head)].rpartition(".")[0]
            path = f"{around}.network" if hasattr(model.get_submodule(around), "network") else f"{around}.backbone".lstrip(".")
            for layer in feature_layers(model.get_submodule(path)):
                known = {"branch": branch_of(paths[id(head)]), "layer": f"{path}.{layer}"}
                stack.callback(model.get_submodule(known["layer"]).register_forward_hook(partial(begin, **known)).remove)
        scores = model(clip)
    if not 0 <= index < scores.shape[1]:
        raise FlowlessError(f"Grad-CAM: class {index} of a model of {scores.shape[1]}; it must be from 0 to {scores.shape[1] - 1}.")
    gradients = torch.autograd.grad(scores[:, index].sum(), [features for _, features in begun.values()])
    return tuple(
        BranchMaps(branch=branch, layer=layer, values=_weighed(*(_by_segment(part, model, clip) for part in (features.detach(), gradient))))
        for (branch, (layer, features)), gradient in zip(begun.items(), gradients, strict=True)
    )


def _by_segment(features: Tensor, model: Recognizer, clip: Tensor) -> Tensor:
    """Return a layer's features as `[B, N, K, C, h, w]`: K maps of C channels for each segment."""
    segments = model.spec.segments
    if features.dim() == 5:  # X3D, [B, C, N, h, w]
        return features.movedim(2, 1)[:, :, None]
    if features.dim() == 3:  # ViT, [B, N * h * w, C]
        from flowless.train.models.backbones.clip_transformer import PATCH

        places = (clip.shape[3] // PATCH, clip.shape[4] // PATCH)
        return features.unflatten(1, (segments, *places)).movedim(-1, 2)[:, :, None]
    return features.unflatten(0, (len(clip), segments, -1))


def _weighed(features: Tensor, gradient: Tensor) -> NDArray[np.float32]:
    """Return Eq. 2's maps `[B, N, h, w]` of features and gradients `[B, N, K, C, h, w]`."""
    return (gradient.mean((4, 5), keepdim=True) * features).sum((2, 3)).relu().cpu().numpy()

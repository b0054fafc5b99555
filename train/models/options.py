"""What a model may be asked beside its name and its size: words that a recipe and a model share. No heavy library here."""

from __future__ import annotations

from typing import Literal, TypedDict

PAEncoding = Literal["e1", "e2"]
#: Where STM blocks stand (STM, Table 9): all blocks, the first block of every stage, or the first block of one stage.
STMPlacement = Literal["all", "one-per-stage", "stage2", "stage3", "stage4", "stage5"]
#: How an STM block joins its two modules (STM, Table 7).
STMFusion = Literal["sum", "concat"]
#: Side of a displacement map of a frame of 224 x 224 pixels (Disentangling, Table 3).
DisplacementSize = Literal[112, 224]
#: Where the appearance branch joins frames (Disentangling, Table 1): behind pool2, 3c and 4e, or behind the whole network.
AppearancePooling = Literal["gradual", "late"]

#: Families that do not take the ResNets of every depth -> the backbones of their paper.
BACKBONES: dict[str, tuple[str, ...]] = {
    "stm": ("r50", "r18", "r34"),
    "da-tsm": ("r50", "r18"),
    "da-x3d": ("xs", "m"),
    "da-vit": ("b",),
    "disentangling": ("bninception",),
}


class ModelOptions(TypedDict, total=False):
    """What some families can be asked; the others do not mind."""

    blocks: int
    """ResNets, X3D: residual blocks of each stage; BN-Inception: modules of each stage; ViT: blocks in all. 1 to 23, instead of as many
    as the name says (0, the default)."""
    pa_encoding: PAEncoding
    """PA maps as channels (e1, the default), or as attention on the mean feature map (e2)."""
    pa_depth: int
    """Layers whose change PA measures, 0 to 8; the paper's choice, and the default, is 1."""
    eps_inside: bool
    """The official code's place of eps, for its checkpoints."""
    stm_placement: STMPlacement
    """Which residual blocks are STM blocks; by default all."""
    stm_fusion: STMFusion
    """Add the two modules' features up (sum, the default), or concatenate them and convolve (concat)."""
    stm_fixed: bool
    """STM's frequency-degenerated variant, whose temporal and motion kernels are fixed."""
    da_subspace: int
    """Dimensions of the static subspace that dynamic appearance leaves out: 1 (the default) to 3, at most half of the frames."""
    displacement_window: int
    """Disentangling: cells that a feature may move each way between two frames, 1 to 16 (default 4)."""
    displacement_temperature: float
    """Disentangling: how soft the assignment of features is; the smaller, the nearer to the best match alone (default 0.02)."""
    displacement_size: DisplacementSize
    """Disentangling: side of a displacement map of 224 x 224 pixels: conv1's stride is 2 (112, the default) or 1."""
    appearance_pooling: AppearancePooling
    """Disentangling: join neighbouring frames at three places of the network (gradual, the default), or all behind it (late)."""

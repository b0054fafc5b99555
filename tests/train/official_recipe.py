"""How the recorded answers of the official PAN code were made, and how to make them again.

The recording holds names and shapes of the official tensors, and what the official code answered. Weights and clips are
not in it: they follow from this recipe, in NumPy's frozen random numbers. To record again, with a clone of the code
(github.com/zhang-can/PAN-PyTorch, commit 2d96513):

    python tests/train/official_recipe.py PAN-PyTorch
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

RECORDED = Path(__file__).with_name("recorded") / "official_pan.json"
#: Our name of the model -> official modality, frames of a segment.
MODALITIES = {"pan-lite": ("Lite", 4), "pan-full-rgb": ("RGB", 1), "pan-full-pa": ("PA", 4)}
#: What is recorded: model, depth.
CASES = (("pan-lite", "resnet18"), ("pan-full-rgb", "resnet18"), ("pan-full-pa", "resnet18"), ("pan-lite", "resnet50"))
CLASSES = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights(shapes: dict[str, list[int]], *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make tensors of such a size that logits are a few units, for official names and shapes, in the names' order."""
    rng = np.random.RandomState(seed)
    made = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(1)
            continue
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 1 and name.endswith("weight"):
            value = rng.uniform(0.3, 0.9, shape)
        elif len(shape) == 1:
            value = 0.1 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])) * (10 if name.endswith("pred.weight") else 1)
        made[name] = torch.from_numpy(value.astype(np.float32))
    return made


def clip(frames: int, *, height: int = 64, width: int = 48, seed: int = 1) -> np.ndarray:
    """Make two clips of moving blocks, uint8 `[2, 8, frames, height, width, 3]`.

    Every other segment of the second clip repeats its first frame: there PA is nothing but its eps.
    """
    rng = np.random.RandomState(seed)
    coarse = rng.randint(0, 256, (2, 8, 1, -(-height // 8), -(-width // 8) + 1, 3)).astype(np.uint8)
    fine = coarse.repeat(8, axis=3).repeat(8, axis=4)
    moving = np.concatenate([fine[:, :, :, :height, 2 * step : 2 * step + width] for step in range(frames)], axis=2)
    moving[1, ::2] = moving[1, ::2, :1]
    return moving


def official_frames(pixels: np.ndarray) -> torch.Tensor:
    """Normalise uint8 `[B, N, m, H, W, 3]` as the official transforms do: float32 `[B, N, m, 3, H, W]`."""
    frames = torch.from_numpy(pixels).permute(0, 1, 2, 5, 3, 4).float().div(255)
    return (frames - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def build(code: Any, model: str, base: str, *, segments: int = 8, classes: int = CLASSES) -> torch.nn.Module:
    """Build a network of the official code, with VAP and shift, in evaluation mode."""
    modality, frames = MODALITIES[model]
    network = code.models.PAN(
        classes,
        segments,
        modality,
        base_model=base,
        pretrain="",
        is_shift=True,
        data_length=frames,
        has_VAP=True,
        dropout=0.5,
        partial_bn=False,
    )
    network.eval()  # returns nothing in the official class
    return network


def answer(network: torch.nn.Module, model: str) -> torch.Tensor:
    """Return the official logits `[2, classes]` of the recipe's clips, by the official memory order."""
    frames = official_frames(clip(MODALITIES[model][1]))
    with torch.inference_mode():
        return network(frames.flatten(1, 3))


def record(clone: Path) -> dict[str, Any]:
    """Ask the official code for everything that is recorded."""
    from official_pan import load_official

    code = load_official(clone)
    cases = []
    for model, base in CASES:
        network = build(code, model, base)
        shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
        network.load_state_dict(weights(shapes))
        cases.append({"model": model, "base": base, "shapes": shapes, "logits": answer(network, model).tolist()})
    motion = code.persistence(frames=4)
    shapes = {f"PA.{name}": list(value.shape) for name, value in motion.state_dict().items()}
    motion.load_state_dict({name.removeprefix("PA."): value for name, value in weights(shapes).items()})
    pixels = clip(4, height=12, width=9)[1:, :2]
    with torch.inference_mode():
        maps = motion(official_frames(pixels).flatten(1, 3))
    return {
        "code": f"github.com/zhang-can/PAN-PyTorch {code.commit[:7]}, its norm over the channels as PyTorch had it in 2020",
        "torch": torch.__version__.partition("+")[0],
        "cases": cases,
        # Of the still clip's first two segments, [2, 3, 12, 9]: one stands still, one moves.
        "maps": maps.tolist(),
    }


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(record(Path(sys.argv[1]))) + "\n", encoding="utf-8")

"""Networks with random weights that behave like trained ones, clips for them, and how PyTorch runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from flowless.machine import usable_cores
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import Recognizer, build_model


def random_model(name: str, *, spec: ClipSpec, seed: int = 0, **config: Any) -> Recognizer:
    """Build a network with random but non-degenerate weights: a lower precision costs its scores what it costs a trained network's.

    With freshly initialised weights all clips get nearly the same scores, which drown in the rounding of a lower precision. Here
    normalisation layers have random gains and the statistics of a few clips, residual branches end in small gains, and the last layer
    reads the directions in which clips differ most. `config` is what `build_model` takes further, such as `classes` and `width`.
    """
    torch.manual_seed(seed)
    model = build_model(name, spec=spec, **config)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    blocks = [dict(module.named_children()) for module in model.modules()]
    last = {block.get("bn3", block["bn2"]) for block in blocks if "bn2" in block}  # ends a residual branch
    with torch.no_grad():
        for norm in norms:
            nn.init.uniform_(norm.weight, *((0.1, 0.3) if norm in last else (0.5, 1.0)))
            nn.init.normal_(norm.bias, 0, 0.02 if norm in last else 0.1)
            norm.momentum = None  # the plain mean over the clips that follow
            norm.reset_running_stats()
        model.train()
        model(torch.from_numpy(random_clips(4, spec, seed=seed)))
        for norm in norms:
            norm.momentum = 0.1
        model.eval()
        _fit_last_layers(model, random_clips(12, spec, seed=seed + 1))
    return model


def _fit_last_layers(model: Recognizer, clips: np.ndarray) -> None:
    """Make each network's last layer mix the six directions in which its features of these clips differ most, each with equal weight."""
    layers = [head.get_submodule("pred") for head in model.heads]
    seen: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in layers}

    def keep(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # A head that averages segments classifies each of them: clips differ in the mean.
        seen[layer].append(inputs[0].reshape(-1, inputs[0].shape[-1]).mean(0))

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    for clip in clips:
        model(torch.from_numpy(clip[None]))
    for hook in hooks:
        hook.remove()
    for layer in layers:
        features = torch.stack(seen[layer])
        mean = features.mean(0)
        _, sizes, directions = torch.linalg.svd(features - mean, full_matrices=False)
        count = min(6, len(directions))
        scaled = directions[:count] * (len(features) ** 0.5 / sizes[:count, None].clamp_min(1e-6))
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        weight.copy_(torch.randn(len(weight), count) @ scaled / count**0.5)
        bias.copy_(-(weight @ mean))


def random_clips(count: int, spec: ClipSpec, *, seed: int = 0) -> np.ndarray:
    """Return uint8 clips `[count, N, m, H, W, 3]` of blocky noise that drifts, so that neighbouring frames resemble each other.

    Every clip has its own grain, contrast, tint and speed, and either one scene or one a segment.
    """
    rng = np.random.default_rng(seed)
    return np.stack([_random_clip(rng, spec) for _ in range(count)])


def _random_clip(rng: np.random.Generator, spec: ClipSpec) -> np.ndarray:
    grain = int(rng.choice([4, 8, 16, 32, 56]))
    low, high = sorted(rng.integers(0, 256, size=2).tolist())
    tint = rng.uniform(0.3, 1, size=3)
    scenes = int(rng.choice([1, spec.segments]))
    speed = int(rng.integers(0, max(2, grain // 2)))
    cells = (scenes, -(-spec.height // grain), -(-spec.width // grain) + 1, 3)
    coarse = (rng.integers(low, high + 1, size=cells) * tint).astype(np.uint8)
    fine = np.broadcast_to(coarse, (spec.segments, *cells[1:])).repeat(grain, axis=1).repeat(grain, axis=2)
    starts = [step * speed % grain for step in range(spec.frames_per_segment)]
    return np.stack([fine[:, : spec.height, start : start + spec.width] for start in starts], axis=1)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Give PyTorch `threads` threads (None: one a core) for the block."""
    before, wanted = torch.get_num_threads(), threads or usable_cores()
    torch.set_num_threads(wanted)
    try:
        yield wanted
    finally:
        torch.set_num_threads(before)


class Eager:
    """A PyTorch network called with uint8 clips `[B, N, m, H, W, 3]`; returns float32 scores, as an engine does."""

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._model = model

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Return the scores `[B, classes]`, or what else the network outputs."""
        with torch.inference_mode():
            return self._model(torch.from_numpy(clip)).float().numpy()

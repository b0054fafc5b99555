"""The networks that are measured: with weights at hand or lively random ones, and what runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from flowless.engines.bundle.manifest import Manifest
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import Recognizer, build_model
from flowless.train.models.model_config import CONFIG
from flowless.train.models.options import split_options

#: Clips that the statistics of the normalisation layers are taken from, and clips that the last layer is fitted to.
_MEASURED, _FITTED = 4, 12
#: Directions in which the last layer tells clips apart.
_DIRECTIONS = 6


def lively_model(name: str, *, spec: ClipSpec, seed: int = 0, **config: Any) -> Recognizer:
    """Build a network whose random weights behave like trained ones, so that a lower precision costs what it costs them.

    Fresh weights do not: the residual branches end in zeros, so half the network adds nothing, and every clip gets nearly
    the same scores, which drown in the rounding of any lower precision. Here

    - normalisation layers have random gains and the statistics of a few random clips, so numbers stay of ordinary size;
    - each residual branch ends in small gains and adds a little to its shortcut: rounding errors do not pile up;
    - the last layer reads the few directions in which clips differ most, and not what all clips share.

    PAN-Lite ResNet-50 at 112 x 112 in OpenVINO, on videos of moving shapes: bf16 stays 45 dB below the spread of the scores and
    int8 24 dB, where plain random weights leave 19 and 10.

    Args:
        name: As `build_model` knows it.
        spec: What a clip is.
        seed: Other weights.
        **config: What else `build_model` takes: `classes`, and `width` and its like.
    """
    torch.manual_seed(seed)
    model = build_model(name, spec=spec, **config)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    last = _last_norms(model)
    with torch.no_grad():
        for norm in norms:
            nn.init.uniform_(norm.weight, *((0.1, 0.3) if norm in last else (0.5, 1.0)))
            nn.init.normal_(norm.bias, 0, 0.02 if norm in last else 0.1)
            norm.momentum = None  # the plain mean over the clips that follow
            norm.reset_running_stats()
        model.train()
        model(torch.from_numpy(random_clips(_MEASURED, spec, seed=seed)))
        for norm in norms:
            norm.momentum = 0.1
        model.eval()
        _fit_last_layers(model, random_clips(_FITTED, spec, seed=seed + 1))
    return model


def config_of(manifest: Manifest) -> dict[str, Any]:
    """Return what `build_model` makes a bundle's network with, besides its name and ClipSpec; refuse a bundle that does not say."""
    own, rest = split_options(manifest.model, manifest.config)
    if rest.get("classes") != len(manifest.labels) or not rest.keys() <= set(CONFIG):
        raise FlowlessError(f"{manifest.folder}: does not say how large its network is, so PyTorch cannot run it. Export the model again.")
    return {**rest, **own}


def _last_norms(model: nn.Module) -> set[nn.Module]:
    """Return the normalisation layer that ends each residual branch."""
    blocks = [dict(module.named_children()) for module in model.modules()]
    return {block.get("bn3", block["bn2"]) for block in blocks if "bn2" in block}


def _fit_last_layers(model: Recognizer, clips: np.ndarray) -> None:
    """Let each network's last layer mix the directions in which its features of these clips differ most, each as strong."""
    layers = [head.get_submodule("pred") for head in model.heads]
    seen: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: seen[layer].append(given[0].reshape(-1, given[0].shape[-1])))
        for layer in layers
    ]
    for clip in clips:
        model(torch.from_numpy(clip[None]))
    for hook in hooks:
        hook.remove()
    for layer in layers:
        # A head that averages segments classifies each of them: their mean is what a clip differs in.
        features = torch.stack([rows.mean(0) for rows in seen[layer]])
        mean = features.mean(0)
        _, sizes, directions = torch.linalg.svd(features - mean, full_matrices=False)
        count = min(_DIRECTIONS, len(directions))
        scaled = directions[:count] * (len(features) ** 0.5 / sizes[:count, None].clamp_min(1e-6))
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        weight.copy_(torch.randn(len(weight), count) @ scaled / count**0.5)
        bias.copy_(-(weight @ mean))


def random_clips(count: int, spec: ClipSpec, *, seed: int = 0) -> np.ndarray:
    """Return uint8 clips `[count, N, m, H, W, 3]` of blocky noise that drifts: neighbouring frames resemble each other.

    Grain, contrast, tint, speed, and whether the scene changes from segment to segment, are each clip's own.
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
    """A PyTorch network called with uint8 clips `[B, N, m, H, W, 3]`, giving float32 scores."""

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._model = model

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Return the scores `[B, classes]`, or what else the network gives."""
        with torch.inference_mode():
            return self._model(torch.from_numpy(clip)).float().numpy()


class EagerBf16(Eager):
    """The same under bf16 autocast."""

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Return the scores `[B, classes]` as float32."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().__call__(clip)

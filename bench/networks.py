"""The networks that are measured: with weights at hand or lively random ones, and what runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from flowless.machine import usable_cores
from flowless.pipeline.spec import ClipSpec
from flowless.train.models import Recognizer, build_model


def lively_model(name: str, *, classes: int, spec: ClipSpec, width: float = 1.0, seed: int = 0) -> Recognizer:
    """Build a network whose random weights behave like trained ones.

    Fresh weights do not: the residual branches end in zeros, so half the network adds nothing, and every clip gets nearly
    the same scores. Here each normalisation layer gets random gains and the statistics of a few random clips, so numbers
    stay of ordinary size all the way and a wrong layer shows in the scores.
    """
    torch.manual_seed(seed)
    model = build_model(name, classes=classes, spec=spec, width=width)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.0)
            nn.init.normal_(norm.bias, 0, 0.1)
            norm.momentum = None  # the plain mean over the clips that follow
            norm.reset_running_stats()
        model.train()
        for number in range(2):
            model(torch.from_numpy(random_clips(1, spec, seed=seed + number)))
        nn.init.normal_(model.get_submodule("head.pred").get_parameter("weight"), 0, 0.05)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def random_clips(count: int, spec: ClipSpec, *, seed: int = 0) -> np.ndarray:
    """Return uint8 clips `[count, N, m, H, W, 3]` of smooth noise that drifts: neighbouring frames resemble each other."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(count, spec.segments, 1, -(-spec.height // 8), -(-spec.width // 8) + 1, 3), dtype=np.uint8)
    fine = coarse.repeat(8, axis=3).repeat(8, axis=4)
    frames = [fine[:, :, 0, : spec.height, step % 8 : step % 8 + spec.width] for step in range(spec.frames_per_segment)]
    return np.ascontiguousarray(np.stack(frames, axis=2))


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

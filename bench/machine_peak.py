"""What this processor can do at most, measured: the bound that no engine passes."""

from __future__ import annotations

import time
from typing import Any

import torch

from flowless.bench.networks import torch_threads

_SIDE = 1024
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure_peak(*, threads: int, runs: int = 12) -> dict[str, float]:
    """Return giga-multiply-adds per second of large matrix products in fp32 and bf16: the best of several runs.

    A product of matrices is what a processor does fastest, so this bounds every network from above.
    """
    found = {}
    with torch_threads(threads), torch.inference_mode():
        for name, dtype in _TYPES.items():
            left, right = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
            best = min(_seconds(left, right) for _ in range(runs + 2))
            found[name] = round(_SIDE**3 / best / 1e9, 1)
    return found


def bound(gmac: float, peak: dict[str, float]) -> dict[str, Any]:
    """Return the least milliseconds that `gmac` giga-multiply-adds can take at each precision's peak."""
    return {name: round(1e3 * gmac / rate, 1) for name, rate in peak.items()}


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.matmul(left, right)
    return time.perf_counter() - start

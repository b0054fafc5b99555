"""What this processor can do at most, measured: the bound that no engine passes."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from flowless.bench.lib.networks import torch_threads

_SIDE = 1024
#: Seconds after which a type gets no further product.
_MOST_SECONDS = 2.0
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure_peak(*, threads: int, runs: int = 12) -> dict[str, float]:
    """Return giga-multiply-adds per second of large matrix products in fp32 and bf16: the best of several.

    A product of matrices is what a processor does fastest, so this bounds every network from above. A type without instructions of
    its own, whose products take seconds, gets fewer.
    """
    found = {}
    with torch_threads(threads), torch.inference_mode():
        for name, dtype in _TYPES.items():
            left, right = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
            found[name] = round(_SIDE**3 / _best_seconds(left, right, runs=runs + 2) / 1e9, 1)
    return found


def bound(gmac: float, peak: dict[str, float]) -> dict[str, Any]:
    """Return the least milliseconds that `gmac` giga-multiply-adds can take at each precision's peak."""
    return {name: round(1e3 * gmac / rate, 1) for name, rate in peak.items()}


def _best_seconds(left: torch.Tensor, right: torch.Tensor, *, runs: int) -> float:
    best, began = math.inf, time.perf_counter()
    for _ in range(runs):
        start = time.perf_counter()
        torch.matmul(left, right)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > _MOST_SECONDS:
            break
    return best

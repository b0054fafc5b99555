"""The device: how calls on it are timed, and the parts `machine` and `peak`, what it is and the most that it computes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from flowless.bench.gpu.results import NotHere, Results, Settings
from flowless.timing import Timing

_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.sm,clocks.mem,temperature.gpu,power.draw", "--format=csv")


def need_device(settings: Settings) -> torch.device:
    """Return the device, with TF32 off, so that fp32 means float32; raise NotHere where there is no GPU that PyTorch can use."""
    if not settings.rehearsal and not torch.cuda.is_available():
        raise NotHere(f"no CUDA GPU that PyTorch can use (PyTorch {torch.__version__}, CUDA {torch.version.cuda})")
    allow_tf32(False)
    return torch.device(settings.device)


def allow_tf32(allowed: bool) -> None:
    """Let fp32 products and convolutions be computed in TF32, with 10 bits of mantissa, or in full."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def measure_speed(call: Callable[[], object], *, settings: Settings, items: float, what: str = "clips") -> dict[str, Any]:
    """Time a call, waiting for the device after each; then its rate, without waiting in between. Caches are warm.

    Return a row's fields: `latency_ms_p50`, `latency_ms_p99`, `runs`, and `clips_per_s` (or another `what`), `items` a call.
    """
    wait = (lambda: None) if settings.rehearsal else torch.cuda.synchronize
    for _ in range(3):  # kernels are compiled and algorithms chosen
        call()
    wait()
    waited: list[float] = []
    while len(waited) < 5 or (sum(waited) < settings.most_seconds and len(waited) < 200):
        start = time.perf_counter()
        call()
        wait()
        waited.append(time.perf_counter() - start)
    start = time.perf_counter()
    for _ in waited:
        call()
    wait()
    rate = items * len(waited) / max(time.perf_counter() - start, 1e-9)
    timing = Timing.of(waited)
    return {"latency_ms_p50": timing.p50_ms, "latency_ms_p99": timing.p99_ms, "runs": timing.runs, f"{what}_per_s": round(rate, 2)}


def machine(results: Results) -> None:
    """Record the GPU, its driver and clocks."""
    if need_device(results.settings).type == "cuda":
        card = torch.cuda.get_device_properties(0)
        results.fact(gpu=card.name, compute_capability=f"{card.major}.{card.minor}", memory_bytes=card.total_memory)
        results.attempt("nvidia-smi", lambda: results.fact(nvidia_smi=subprocess.check_output(_NVIDIA_SMI, text=True)), may_refuse=True)


def peak(results: Results) -> None:
    """Measure what bounds every network: a large matrix product in each arithmetic, and a copy in memory."""
    device, settings = need_device(results.settings), results.settings
    side = 64 if settings.rehearsal else 8192

    def product(arithmetic: str) -> None:
        rate = measure_speed(_product(arithmetic, side, device), settings=settings, items=2 * side**3)["clips_per_s"]
        results.row(arithmetic=arithmetic, side=side, tflop_per_s=round(rate / 1e12, 4))

    for arithmetic in ("bf16", "fp16", "int8", "tf32", "fp32"):
        results.attempt(arithmetic, partial(product, arithmetic))
    source = torch.zeros(side**2, device=device)
    results.fact(memory_gb_per_s=measure_speed(source.clone, settings=settings, items=2e-9 * source.nbytes)["clips_per_s"])


def _product(arithmetic: str, side: int, device: torch.device) -> Callable[[], object]:
    """Return a product of two random square matrices; matrices of zeros would need less power and run faster."""
    allow_tf32(arithmetic == "tf32")
    if arithmetic == "int8":
        left, right = (torch.randint(-128, 128, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        return lambda: torch.ops.aten._int_mm(left, right.t())
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(arithmetic, torch.float32)
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return lambda: left @ right

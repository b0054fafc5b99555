"""Time and memory of work on a GPU; on the CPU the same functions rehearse."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from flowless.bench.gpu.ledger import NotHere, Settings
from flowless.timing import Timing

#: Untimed calls before the first timed one: kernels are compiled and algorithms chosen in them.
_WARM_UP = 3
_LEAST_RUNS = 5
_MOST_RUNS = 200


def need_device(settings: Settings) -> torch.device:
    """Return the device; raise NotHere where it is a GPU and there is none."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise NotHere(why_no_gpu())
    return torch.device(settings.device)


def why_no_gpu() -> str:
    """Say why PyTorch sees no GPU."""
    built = f"PyTorch {torch.__version__} is built for CUDA {torch.version.cuda}" if torch.version.cuda else "this PyTorch has no CUDA"
    return f"no CUDA GPU that PyTorch can use ({built})"


def synchronise(device: torch.device) -> None:
    """Wait for what was begun on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_ms(call: Callable[[], object], *, device: torch.device, most_seconds: float) -> Timing:
    """Time calls by the device's own clock: CUDA events around each, none waited for before all are begun.

    Caches are warm: what fits into them is read from them.
    """
    if device.type != "cuda":
        return answer_ms(call, device=device, most_seconds=most_seconds)
    for _ in range(_WARM_UP):
        call()
    runs = _runs(call, device, most_seconds)
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for start, end in marks:
        start.record()
        call()
        end.record()
    synchronise(device)
    return Timing.of([start.elapsed_time(end) / 1e3 for start, end in marks])


def answer_ms(call: Callable[[], object], *, device: torch.device, most_seconds: float) -> Timing:
    """Time calls as a user waits for them: from the call until the device has done it, one after the other."""
    for _ in range(_WARM_UP):
        call()
    synchronise(device)
    seconds: list[float] = []
    while len(seconds) < _LEAST_RUNS or (sum(seconds) < most_seconds and len(seconds) < _MOST_RUNS):
        start = time.perf_counter()
        call()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return Timing.of(seconds)


def back_to_back_ms(call: Callable[[], object], *, device: torch.device, most_seconds: float) -> float:
    """Return the mean milliseconds of a call where each is begun without waiting for the one before: the throughput's."""
    runs = _runs(call, device, most_seconds)
    start = time.perf_counter()
    for _ in range(runs):
        call()
    synchronise(device)
    return 1e3 * (time.perf_counter() - start) / runs


def peak_bytes(call: Callable[[], object], *, device: torch.device) -> int | None:
    """Return the most memory that PyTorch held during a call, beyond what it held before; None on the CPU."""
    if device.type != "cuda":
        call()
        return None
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def full_float32(full: bool = True) -> None:
    """Have fp32 mean float32 in products and convolutions; with `full=False` allow TF32, 10 bits of mantissa."""
    torch.backends.cuda.matmul.allow_tf32 = not full
    torch.backends.cudnn.allow_tf32 = not full


def figures(timing: Timing) -> dict[str, Any]:
    """Return a timing as a row's fields."""
    return {"latency_ms_p50": timing.p50_ms, "latency_ms_p99": timing.p99_ms, "runs": timing.runs}


def _runs(call: Callable[[], object], device: torch.device, most_seconds: float) -> int:
    """Return how many calls fit into the seconds, judged by a few of them."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(_WARM_UP):
        call()
    synchronise(device)
    once = max((time.perf_counter() - start) / _WARM_UP, 1e-6)
    return int(np.clip(most_seconds / once, _LEAST_RUNS, _MOST_RUNS))

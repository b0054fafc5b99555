"""The parts `machine` and `peak` of the GPU suite: what it runs on, and what that can do at most."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from flowless.bench.gpu.ledger import Ledger, NotHere

#: What nvidia-smi is asked for; it only reads.
QUERY = (
    *("name", "driver_version", "memory.total", "power.limit", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem"),
    *("temperature.gpu", "power.draw"),
)
#: Larger than what `flowless doctor` lists: what may be found on a machine that is lent.
_LIBRARIES = ("triton", "onnxruntime", "cuda-python", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-dali-cuda120", "tensorrt-cu13")

#: What the driver and TensorRT bring, and the programs of the CUDA toolkit: whether the other parts can run.
_SHARED = ("libcuda.so.1", "libnvcuvid.so.1", "libnvidia-encode.so.1", "libnvinfer.so.10")
_TOOLS = ("nvcc", "compute-sanitizer", "ncu")


def machine(ledger: Ledger) -> None:
    """Write down processor, GPU, driver, CUDA, clocks and versions; without a GPU, why there is none."""
    from flowless.machine import environment, installed_versions

    found = environment()
    found["versions"] |= installed_versions(_LIBRARIES)
    ledger.fact(environment=found, nvidia_smi=nvidia_smi())
    ledger.fact(loads={name: loads(name) for name in _SHARED}, tools={name: tool(name) is not None for name in _TOOLS})
    try:
        gpu = gpu_facts()
    except (NotHere, ModuleNotFoundError) as error:
        reason = str(error) if isinstance(error, NotHere) else f"{error.name} is not installed"
        ledger.fact(gpu=None, no_gpu=reason)
        return
    ledger.fact(gpu=gpu)


def loads(library: str) -> bool | str:
    """Return whether a shared library loads, or what the loader says."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)[:160]
    return True


def tool(name: str) -> str | None:
    """Return where a program of the CUDA toolkit lies: on the path, or where the toolkit is installed."""
    return shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")


def gpu_facts() -> dict[str, Any]:
    """Return what PyTorch knows about the first GPU; raise NotHere where there is none."""
    import torch

    from flowless.bench.gpu.clock import why_no_gpu

    if not torch.cuda.is_available():
        raise NotHere(why_no_gpu())
    facts = torch.cuda.get_device_properties(0)
    return {
        "name": facts.name,
        "compute_capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_gib": round(facts.total_memory / 2**30, 1),
        "l2_mib": round(getattr(facts, "L2_cache_size", 0) / 2**20, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def nvidia_smi() -> dict[str, str] | str:
    """Return what nvidia-smi says about the first GPU, or why it says nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "not here: nvidia-smi is not on the path"
    try:
        done = subprocess.run(
            [program, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not here: nvidia-smi does not answer ({type(error).__name__})"
    lines = done.stdout.strip().splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    if done.returncode or len(values) != len(QUERY):
        return f"not here: nvidia-smi says {' '.join((done.stderr or done.stdout).split())[:200]!r}"
    return dict(zip(QUERY, values, strict=True))


def peak(ledger: Ledger) -> None:
    """Measure what no network passes: large matrix products in each arithmetic, and a copy in memory."""
    import torch

    from flowless.bench.gpu.clock import device_ms, full_float32, need_device

    settings = ledger.settings
    device = need_device(settings)
    if device.type == "cuda":
        ledger.fact(card=torch.cuda.get_device_name(device))
    sides = (64,) if settings.rehearsal else (8192,) if settings.quick else (4096, 8192, 16384)
    torch.manual_seed(0)
    for arithmetic in ("bf16", "fp16", "int8", "tf32", "fp32"):
        with ledger.trial(arithmetic), torch.inference_mode():
            full_float32(arithmetic != "tf32")
            best: dict[str, Any] = {}
            # Full float32 takes fifteen times as long as half precision, and knows no better size.
            for side in sides[:2] if arithmetic == "fp32" else sides:
                timing = device_ms(_product(arithmetic, side, device), device=device, most_seconds=settings.most_seconds / 2)
                rate = tera_per_second(2 * side**3, timing.p50_ms)
                if rate > best.get("tflop_per_s", -1):  # on a slow processor it rounds to nothing
                    best = {"arithmetic": arithmetic, "side": side, "ms_p50": timing.p50_ms, "runs": timing.runs, "tflop_per_s": rate}
            ledger.row(**best)
    full_float32()
    with ledger.trial("memory"), torch.inference_mode():
        count = 2**16 if settings.rehearsal else 2**30
        source = torch.zeros(count, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        timing = device_ms(lambda: target.copy_(source), device=device, most_seconds=settings.most_seconds / 2)
        ledger.fact(memory_gb_per_s=round(2 * count / (timing.p50_ms / 1e3) / 1e9, 1) if timing.p50_ms else None)


def tera_per_second(operations: float, milliseconds: float) -> float:
    """Return 10^12 operations per second."""
    return round(operations / max(milliseconds, 1e-6) / 1e9, 4)


def _product(arithmetic: str, side: int, device: Any) -> Callable[[], object]:
    """Return a product of two random square matrices: numbers that are all zero would cost less power, and run faster."""
    import torch

    if arithmetic == "int8":
        left, right = (torch.randint(-128, 128, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        return lambda: torch.ops.aten._int_mm(left, right.t())
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(arithmetic, torch.float32)
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return lambda: left @ right

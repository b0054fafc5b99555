"""What a measurement was made on: the part of every result file that makes its numbers comparable."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from flowless.machine import installed_versions, usable_cores
from flowless.waiting import policy

LIBRARIES = (
    *("numpy", "av", "pillow", "openvino", "onnxruntime-gpu", "onnx", "onnxscript", "torch", "torchvision", "timm", "lightning"),
    *("nvidia-modelopt", "polygraphy", "nvidia-dali-cuda130", "tensorrt-rtx", "tensorrt"),
    *("opencv-contrib-python-headless", "flowless"),
)
#: The instruction sets that decide how fast a network runs on a CPU.
INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)


def environment() -> dict[str, Any]:
    """Return processor, instruction sets, cores, memory, GPU, operating system, how threads wait, and the libraries' versions."""
    return {
        "processor": processor(),
        "instruction_sets": instruction_sets(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "gpu": gpu_names(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "waiting": policy(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that matter here."""
    return installed_versions(LIBRARIES)


def processor() -> str:
    """Return the processor's name as the operating system gives it."""
    for key, value in _cpuinfo():
        if key in {"model name", "Model"}:
            return value
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Return those of `INSTRUCTION_SETS` that the processor has."""
    flags = next((set(value.split()) for key, value in _cpuinfo() if key in {"flags", "Features"}), set())
    return [name for name in INSTRUCTION_SETS if name in flags]


def quick_precision() -> str:
    """Return the faster arithmetic of training here: mixed bf16 where the processor multiplies in it, else fp32."""
    return "bf16" if {"avx512_bf16", "amx_bf16"} & set(instruction_sets()) else "fp32"


def memory_gib() -> float:
    """Return the machine's memory in GiB, 0 where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return 0.0


def gpu_names() -> list[str]:
    """Return the NVIDIA GPUs that the driver lists, without needing a CUDA library."""
    folder = Path("/proc/driver/nvidia/gpus")
    if not folder.is_dir():
        return []
    models = []
    for card in sorted(folder.iterdir()):
        lines = (card / "information").read_text(encoding="utf-8", errors="replace").splitlines()
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return models


def _cpuinfo() -> list[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return []
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [(key.strip(), value.strip()) for key, _, value in pairs]

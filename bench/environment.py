"""What a measurement was made on: the part of every result file that makes its numbers comparable."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from flowless.machine import installed_versions, usable_cores
from flowless.waiting import policy

LIBRARIES = (
    *("numpy", "av", "pillow", "openvino", "onnxruntime-gpu", "onnx", "onnxscript", "torch", "torchvision", "timm", "lightning"),
    *("nvidia-modelopt", "polygraphy", "nvidia-dali-cuda130", "tensorrt-rtx", "tensorrt"),
    *("opencv-contrib-python-headless", "torchcodec", "decord", "decord2", "eva-decord", "flowless"),
)
#: What the names of instruction sets hold that decide how fast a network runs on a CPU, and in which arithmetic. They are noted, and
#: nothing is concluded from them: what is computed in, the libraries tell.
_TELLING = re.compile(r"^(avx2|avx512f|avx10.*|.*vnni.*|.*bf16|.*fp16|amx.*|asimd|asimdhp|asimddp|i8mm|sve2?)$")


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
    """Return the processor's instruction sets that matter to a network, by the operating system's names and in its order."""
    flags = next((value.split() for key, value in _cpuinfo() if key in {"flags", "Features"}), [])
    return [name for name in flags if _TELLING.match(name)]


def quick_precision() -> str:
    """Return the faster arithmetic of training here: mixed bf16 where PyTorch says that the processor multiplies in it, else fp32.

    Where PyTorch's oneDNN takes bf16 and the processor has no instruction that multiplies it, it is emulated, slower than fp32.
    """
    import torch

    has = torch.cpu.get_capabilities()
    multiplies = any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if multiplies and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


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

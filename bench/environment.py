"""What a measurement was made on: the part of every result file that makes its numbers comparable."""

from __future__ import annotations

import os
import platform
from typing import Any

from flowless.machine import gpu_names, installed_versions, instruction_sets, processor, usable_cores
from flowless.waiting import policy

LIBRARIES = (
    *("numpy", "av", "pillow", "openvino", "onnxruntime-gpu", "onnx", "onnxscript", "torch", "torchvision", "timm", "lightning"),
    *("nvidia-modelopt", "polygraphy", "nvidia-dali-cuda130", "tensorrt-rtx", "tensorrt"),
    *("opencv-contrib-python-headless", "torchcodec", "decord", "decord2", "eva-decord", "flowless"),
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

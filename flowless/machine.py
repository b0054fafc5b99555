"""Facts about the machine: usable cores, processor, instruction sets, GPUs, memory, and installed libraries."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flowless.thread_waiting import policy as waiting_policy


def usable_cores() -> int:
    """Return the number of cores that this process may run on; in a container this can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_physical_cores() -> int:
    """Return the number of usable physical cores: the hyper-threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    usable = os.sched_getaffinity(0)
    places = [Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list") for core in usable]
    if not all(place.is_file() for place in places):
        return len(usable)
    return len({place.read_text(encoding="ascii") for place in places})


#: Parameters of glibc's mallopt: the size above which a block is mapped separately, and how much free heap is kept.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
#: The largest values that glibc accepts: half of a thread's heap, and INT_MAX.
_THRESHOLD, _KEPT = 32 * 2**20, 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the system, for the rest of the process; return whether that worked.

    Every training step on a CPU frees its feature maps and allocates as many again. By default glibc unmaps large blocks, and the
    kernel then zeroes new pages one by one: 18 % of a step's time (TSM ResNet-18 with a quarter of the channels, 20 clips of 8 frames of
    48 x 48, one core). The process's memory stays at its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _KEPT))


#: Instruction sets that decide how fast a network runs on a CPU (not in which precision: that is the libraries' choice).
_RELEVANT = re.compile(r"^(avx2|avx512f|avx10.*|.*vnni.*|.*bf16|.*fp16|amx.*|asimd|asimdhp|asimddp|i8mm|sve2?)$")


def machine_name() -> str:
    """Return one line that identifies a machine's speed: the processor, usable cores, instruction sets and GPUs."""
    return "; ".join([f"{processor()}, {usable_cores()} cores", " ".join(instruction_sets()), *gpu_names()])


def processor() -> str:
    """Return the processor's name as the operating system gives it."""
    for key, value in _cpuinfo():
        if key in {"model name", "Model"}:
            return value
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Return the processor's instruction sets that matter to a network, with the operating system's names and in its order."""
    flags = next((value.split() for key, value in _cpuinfo() if key in {"flags", "Features"}), [])
    return [name for name in flags if _RELEVANT.match(name)]


def gpu_names() -> list[str]:
    """Return the models of the NVIDIA GPUs that the driver lists in /proc; needs no CUDA library."""
    folder = Path("/proc/driver/nvidia/gpus")
    if not folder.is_dir():
        return []
    models = []
    for card in sorted(folder.iterdir()):
        lines = (card / "information").read_text(encoding="utf-8", errors="replace").splitlines()
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return models


@functools.cache
def _cpuinfo() -> list[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return []
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each distribution that is installed, in the order of `names`; the others are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


#: Distributions whose versions are written to result files.
MEASURED_LIBRARIES = (
    *("numpy", "av", "pillow", "openvino", "onnxruntime-gpu", "onnx", "onnxscript", "torch", "torchvision", "timm", "lightning"),
    *("nvidia-modelopt", "polygraphy", "nvidia-dali-cuda130", "tensorrt-rtx", "tensorrt"),
    *("opencv-contrib-python-headless", "torchcodec", "decord", "decord2", "eva-decord", "flowless"),
)


def environment() -> dict[str, Any]:
    """Return processor, instruction sets, cores, memory, GPU, operating system, OpenMP wait policy, and the libraries' versions."""
    return {
        "processor": processor(),
        "instruction_sets": instruction_sets(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "gpu": gpu_names(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "waiting": waiting_policy(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the installed versions of `MEASURED_LIBRARIES`."""
    return installed_versions(MEASURED_LIBRARIES)


def quick_precision() -> str:
    """Return the faster training precision on this CPU: bf16 (mixed) where it has bf16 multiply instructions, else fp32.

    Without such instructions oneDNN emulates bf16, slower than fp32.
    """
    import torch

    has = torch.cpu.get_capabilities()
    multiplies = any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if multiplies and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def memory_gib() -> float:
    """Return the machine's memory in GiB, 0 where the system does not report it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return 0.0

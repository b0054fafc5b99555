"""The part `kernels` of the GPU suite: the TensorRT plugin's CUDA kernel, compiled by nvcc and called by its C entry, without TensorRT."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowless.bench.gpu.clock import device_ms, need_device
from flowless.bench.gpu.ledger import Ledger, NotHere
from flowless.bench.gpu.machine import tool
from flowless.bench.gpu.persistence import ARITHMETIC, Case, cases
from flowless.files import sha256_of, whole_file
from flowless.train.pa.convolution_forms import TOLERANCES, motion_shape, persistence_by_pixels

#: Makes maps `out` of frames and weight, all dense, on the current stream.
Launch = Callable[[Tensor, Tensor, Tensor], None]
#: Beside the product's rounding, the plugin's FP16 kernel rounds nothing but the map.
_PLUGIN_TYPES = ("float32", "float16")


def kernels(ledger: Ledger) -> None:
    """Check the kernel against the formula in float64, and time them."""
    device = need_device(ledger.settings)
    with ledger.trial("plugin's kernel"):
        entry = plugin_entry(ledger.settings.folder)
        for arithmetic in _PLUGIN_TYPES:
            half = int(arithmetic == "float16")
            _judge(ledger, "plugin's kernel", arithmetic, lambda eps, half=half: plugin_launch(entry, half, eps), device)


def _judge(ledger: Ledger, name: str, arithmetic: str, make: Callable[[float], Launch], device: torch.device) -> None:
    """Compare a kernel with the formula on all cases; then time it on a clip of 8 x 4 frames, eight at once."""
    kind, weight_kind = ARITHMETIC[arithmetic]
    worst = (-1.0, "")
    for case in cases():
        if arithmetic == "uint8" and not case.pixels:
            continue
        error = _error(case, kind, weight_kind, make(case.eps), device)
        # The first error that is no number stays the worst.
        if worst[0] == worst[0] and not error <= worst[0]:
            worst = (error, case.name)
    allowed = TOLERANCES[arithmetic]
    ledger.check(f"{name} {arithmetic} maps", passed=worst[0] <= allowed, error=worst[0], allowed=allowed, worst=worst[1])
    shape = (64, 4, 3, 224, 224)
    frames = torch.randint(0, 256, shape, device=device, dtype=torch.uint8).to(kind)
    weight = (0.002 * torch.randn((8, 3, 7, 7), device=device)).to(weight_kind)
    out = torch.empty(motion_shape(frames), dtype=weight_kind, device=device)
    launch = make(1e-12)
    timing = device_ms(lambda: launch(frames, weight, out), device=device, most_seconds=ledger.settings.most_seconds / 4)
    rate = out.shape[0] * out.shape[1] / max(timing.p50_ms, 1e-6) * 1e3
    ledger.row(kernel=name, arithmetic=arithmetic, shape=list(shape), ms_p50=timing.p50_ms, ms_p99=timing.p99_ms, maps_per_s=round(rate, 1))


def _error(case: Case, kind: torch.dtype, weight_kind: torch.dtype, launch: Launch, device: torch.device) -> float:
    frames, weight = case.frames.to(kind), case.weight.to(weight_kind)
    truth = persistence_by_pixels(frames.double(), weight.double(), case.eps)
    out = torch.full(motion_shape(frames), torch.nan, dtype=weight_kind, device=device)
    launch(frames.to(device).contiguous(), weight.to(device).contiguous(), out)
    torch.cuda.synchronize(device)
    beyond = (out.double().cpu() - truth).abs().max() - torch.finfo(weight_kind).tiny
    return float(beyond.clamp(min=0) / truth.abs().max())


def plugin_entry(folder: Path) -> Any:
    """Compile the plugin's kernel, unless `folder` holds it, and return its C entry; raise NotHere without a compiler or its sources."""
    source = plugin_sources() / "pa_kernel.cu"
    library = folder / f"pa_kernel-{sha256_of(source)[:16]}.so"
    if not library.is_file():
        with whole_file(library) as draft:
            nvcc(["-shared", "-Xcompiler", "-fPIC", str(source), "-o", str(draft)])
    return ctypes.CDLL(str(library)).flowless_pa_launch


def plugin_sources() -> Path:
    """Return the folder of the plugin's sources; raise NotHere where this installation has none."""
    from flowless.export.plugin.plugin_library import SOURCES

    if not (SOURCES / "pa_kernel.cu").is_file():
        raise NotHere("the plugin's sources are not in this installation (pa_kernel.cu)")
    return SOURCES


def nvcc(words: Sequence[str]) -> str:
    """Compile for the GPU that is here and return what the compiler says; raise NotHere where there is no compiler."""
    compiler = tool("nvcc")
    if compiler is None:
        raise NotHere("nvcc is neither on the path nor in /usr/local/cuda/bin")
    done = subprocess.run([compiler, "-std=c++17", "-O3", "-arch=native", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc refuses the plugin's kernel: {done.stderr.strip()[:400]}")
    return done.stderr


def plugin_launch(entry: Any, half: int, eps: float) -> Launch:
    """Return what launches the plugin's kernel, in fp16 with `half`, in fp32 without."""

    def launch(frames: Tensor, weight: Tensor, out: Tensor) -> None:
        stacks, count, _, height, width = frames.shape
        pointers = [ctypes.c_void_p(item.data_ptr()) for item in (frames, weight, out)]
        sizes = (ctypes.c_int64(stacks), ctypes.c_int64(count), height, width)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = entry(half, *pointers, *sizes, ctypes.c_float(eps), 0, stream)
        if status:
            raise RuntimeError(f"the plugin's kernel was not launched: CUDA error {status}")

    return launch

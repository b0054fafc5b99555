"""The part `kernels` of the GPU suite: the PA op's kernels as engines launch them, without TensorRT.

The TensorRT plugin's CUDA kernel, compiled here by nvcc and called by its C entry; and the Triton kernel compiled ahead of
time, loaded and launched by the CUDA driver alone, as an engine with the quickly deployable plugin does it.
"""

from __future__ import annotations

import ctypes
import functools
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
from flowless.train.pa.forms import TOLERANCES, motion_shape, persistence_by_pixels

#: Makes maps `out` of frames and weight, all dense, on the current stream.
Launch = Callable[[Tensor, Tensor, Tensor], None]
#: PTX of this architecture runs on every later GPU.
_PORTABLE = 80
#: Beside the product's rounding, the plugin's FP16 kernel rounds nothing but the map.
_PLUGIN_TYPES = ("float32", "float16")


def kernels(ledger: Ledger) -> None:
    """Check both kernels against the formula in float64, and time them."""
    device = need_device(ledger.settings)
    with ledger.trial("plugin's kernel"):
        entry = plugin_entry(ledger.settings.folder)
        for arithmetic in _PLUGIN_TYPES:
            half = int(arithmetic == "float16")
            _judge(ledger, "plugin's kernel", arithmetic, lambda eps, half=half: plugin_launch(entry, half, eps), device)
    major, minor = torch.cuda.get_device_capability(device)
    for arch, binary in ((_PORTABLE, "ptx"), (10 * major + minor, "cubin")):
        for arithmetic in ("float32", "float16", "uint8"):
            name = f"ahead of time, {binary} for {arch}"
            with ledger.trial(f"{name}, {arithmetic}"):
                _judge(
                    ledger,
                    name,
                    arithmetic,
                    lambda eps, arch=arch, binary=binary, arithmetic=arithmetic: _ahead(arch, binary, arithmetic, eps),
                    device,
                )


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
    import flowless.export

    folder = Path(str(flowless.export.__file__)).with_name("plugin")
    if not (folder / "pa_kernel.cu").is_file():
        raise NotHere("the plugin's sources are not in this installation (pa_kernel.cu)")
    return folder


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


def _ahead(arch: int, binary: str, arithmetic: str, eps: float) -> Launch:
    """Compile ahead of time, load by the driver, and return what launches it with the parameters that its record names."""
    made = _compiled(arch, arithmetic, eps)
    cuda: Any = ctypes.CDLL("libcuda.so.1")
    torch.zeros(1, device="cuda")  # PyTorch's context is the current one from here on
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    image = made.ptx.encode() + b"\0" if binary == "ptx" else made.cubin
    _driver(cuda.cuModuleLoadData(ctypes.byref(module), image))
    _driver(cuda.cuModuleGetFunction(ctypes.byref(function), module, made.entry.encode()))
    if made.shared_bytes > 48 << 10:
        _driver(cuda.cuFuncSetAttribute(function, 8, made.shared_bytes))  # 8: the most dynamic shared memory

    def launch(frames: Tensor, weight: Tensor, out: Tensor) -> None:
        stacks, count, _, height, width = frames.shape
        strides = dict(zip(("stack", "frame", "channel", "row", "column"), frames.stride(), strict=True))
        numbers = {"pairs": count - 1, "height": height, "width": width, **{f"stride_{name}": step for name, step in strides.items()}}
        tensors = {"x_ptr": frames, "weight_ptr": weight, "out_ptr": out}
        values = [
            ctypes.c_int32(numbers[name]) if kind == "i32" else ctypes.c_uint64(tensors[name].data_ptr()) for name, kind in made.parameters
        ]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        blocks = stacks * (count - 1) * -(-height // made.tile[0]) * -(-width // made.tile[1])
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _driver(cuda.cuLaunchKernel(function, blocks, 1, 1, 32 * made.warps, 1, 1, made.shared_bytes, stream, addresses, None))

    return launch


@functools.cache
def _compiled(arch: int, arithmetic: str, eps: float) -> Any:
    from flowless.train.pa.ptx import compile_ahead

    return compile_ahead(arch, arithmetic, eps=eps)


def _driver(status: int) -> None:
    if status:
        raise RuntimeError(f"the CUDA driver refuses it: error {status}")

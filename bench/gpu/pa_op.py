"""The parts `persistence`, `kernels`, `pa-forms` and `sanitizer`: the PA op and the plugin's kernel against float64, and their speed."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowless.bench.gpu.device import allow_tf32, measure_speed, need_device
from flowless.bench.gpu.results import NotHere, Results, Settings
from flowless.errors import FlowlessError
from flowless.export.plugin.plugin_library import SOURCES
from flowless.train.pa.convolution_forms import TOLERANCES, motion_shape, persistence_by_pixels
from flowless.train.pa.persistence import EPS

Maps = Callable[[Tensor, Tensor, float], Tensor]  # of frames, weight and eps


def persistence(results: Results) -> None:
    """Check the op's bodies against the formula in float64."""
    device = need_device(results.settings)
    for body in ("torch",) if results.settings.rehearsal else ("triton", "torch"):
        for arithmetic in ("float32", "float16", "bfloat16", "uint8", *(["tf32"] if body == "triton" else [])):
            check = partial(_check, results, body, arithmetic, torch.ops.flowless.persistence, device)
            results.attempt(f"{body} {arithmetic}", partial(with_body, body, check))


def kernels(results: Results) -> None:
    """Check the plugin's kernel against the formula in float64."""
    device = need_device(results.settings)
    _plugin_entry(results.settings)
    maps = partial(_plugin_maps, results.settings)
    for arithmetic in ("float32", "float16"):
        results.attempt(arithmetic, partial(_check, results, "plugin's kernel", arithmetic, maps, device, gradients=False))


def _cases() -> dict[str, tuple[Tensor, float]]:
    """Return float64 frames `[S, m, 3, H, W]` on which bodies differ most, and eps; all integers from 0 to 255 but the first."""
    random = torch.Generator().manual_seed(5)
    pixels = partial(torch.randint, 0, 256, generator=random, dtype=torch.float64)
    one = torch.full((1, 2, 3, 33, 40), 90.0, dtype=torch.float64)
    one[0, 1, 1, 16, 20] = 91
    return {
        "random": (100 * torch.randn((2, 3, 3, 40, 52), generator=random, dtype=torch.float64), 1e-2),
        "constant in time": (pixels((1, 1, 3, 32, 36)).repeat(1, 3, 1, 1, 1), 1e-6),
        "one pixel changes by one": (one, 1e-3),
        "odd sides": (pixels((2, 3, 3, 23, 41)), 1e-3),
        "one pixel": (pixels((2, 2, 3, 1, 1)), 1e-3),
        "the network's size": (pixels((1, 2, 3, 224, 224)), 1e-12),
    }


def _check(results: Results, name: str, arithmetic: str, maps: Maps, device: torch.device, *, gradients: bool = True) -> None:
    """Compare maps and gradients of all cases with float64 on the CPU; record the worst case of each."""
    allow_tf32(arithmetic == "tf32")
    kind = getattr(torch, arithmetic.replace("tf32", "float32"))
    weight_kind = kind if kind.is_floating_point else torch.float32
    weight = (0.1 * torch.randn((8, 3, 7, 7), generator=torch.Generator().manual_seed(6))).to(weight_kind)
    worst: dict[str, tuple[float, str]] = {}
    for case, (exact, eps) in list(_cases().items())[arithmetic == "uint8" :]:
        frames = exact.to(kind)
        # Of one sign, so that the weight's gradient is no small difference of large numbers; small enough for a sum in float16.
        upstream = torch.rand(motion_shape(frames), generator=torch.Generator().manual_seed(3))
        upstream = (upstream / upstream.numel() ** 0.5).to(weight_kind) if gradients else None
        truth = _computed(persistence_by_pixels, frames.double(), weight.double(), eps, upstream)
        for what, value in _computed(maps, frames.to(device), weight.to(device), eps, upstream).items():
            # Below its smallest number a type holds nothing: no error of a body.
            beyond = (value.double().cpu() - truth[what]).abs().max() - torch.finfo(value.dtype).tiny * torch.finfo(value.dtype).eps
            error = float(beyond.clamp(min=0) / (truth[what].abs().max() or 1.0))
            known = worst.get(what, (-1.0, ""))[0]
            if not math.isnan(known) and not error <= known:  # the first NaN stays the worst
                worst[what] = (error, case)
    for what, (error, case) in worst.items():
        # A gradient divides by the map as it was rounded: twice the tolerance.
        allowed = TOLERANCES[arithmetic] * (1 if what == "maps" else 2)
        results.check(f"{name} {arithmetic} {what}", passed=error <= allowed, error=error, allowed=allowed, worst=case)


def _computed(maps: Maps, frames: Tensor, weight: Tensor, eps: float, upstream: Tensor | None) -> dict[str, Tensor]:
    """Return maps, and the gradients where `upstream`, the gradient at the maps, is given."""
    if upstream is None:
        return {"maps": maps(frames, weight, eps)}
    sources = {"weight's gradient": weight.requires_grad_()}
    if frames.is_floating_point():
        sources["frames' gradient"] = frames.requires_grad_()
    found = maps(frames, weight, eps)
    gradients = torch.autograd.grad(found, list(sources.values()), upstream.to(found))
    return dict(zip(("maps", *sources), (found.detach(), *gradients), strict=True))


def pa_forms(results: Results) -> None:
    """Time 256 stacks of 4 frames in the layouts and types in which they come."""
    settings = results.settings
    stacks, side = (2, 48) if settings.rehearsal else (256, 224)
    stored = torch.randint(0, 256, (stacks, 4, side, side, 3), dtype=torch.uint8, device=need_device(settings))  # as a decoder leaves them
    seen, weight = stored.movedim(-1, -3), 0.002 * torch.randn((8, 3, 7, 7), device=stored.device)
    op, floats = torch.ops.flowless.persistence, seen.float().contiguous()

    def record(form: str, maps: Maps, frames: Tensor, weight: Tensor = weight, body: str = "") -> None:
        def measure() -> None:
            speed = measure_speed(lambda: maps(frames, weight, EPS), settings=settings, items=3 * stacks, what="maps")
            results.row(form=form, demanded=bool(body), body=body or None, **speed)

        results.attempt(f"{form} by {body}" if body else form, partial(with_body, body, measure))

    for body in ("",) if settings.rehearsal else ("", "triton", "torch"):
        record("uint8, colours last", op, seen, body=body)
        record("float32, planes", op, floats, body=body)
        record("float16, planes", op, floats.half(), weight.half(), body=body)
        record("forward and weight's gradient, uint8, colours last", _backward, seen, body=body)
    record("plain by pixels, fp32", persistence_by_pixels, floats)
    record("plugin's CUDA kernel, fp32", partial(_plugin_maps, settings), floats)
    record("plugin's CUDA kernel, fp16", partial(_plugin_maps, settings), floats.half(), weight.half())


def _backward(frames: Tensor, weight: Tensor, eps: float) -> Tensor:
    weight = weight.detach().requires_grad_()
    return torch.autograd.grad(torch.ops.flowless.persistence(frames, weight, eps).sum(), weight)[0]


def with_body(body: str, run: Callable[[], Any]) -> None:
    """Run something with a body of the op, `torch` or `triton` ("" lets it choose); raise NotHere where that body cannot serve here."""
    os.environ["FLOWLESS_PA"] = body
    try:
        run()
    except FlowlessError as error:
        raise NotHere(str(error)) from error
    finally:
        del os.environ["FLOWLESS_PA"]


@functools.cache
def _plugin_entry(settings: Settings) -> Any:
    """Compile the plugin's CUDA kernel, without TensorRT; return its C entry."""
    _nvcc(settings, "-shared", "-Xcompiler", "-fPIC", "-o", str(settings.folder / "pa_kernel.so"))
    return ctypes.CDLL(str(settings.folder / "pa_kernel.so")).flowless_pa_launch


def _plugin_maps(settings: Settings, frames: Tensor, weight: Tensor, eps: float) -> Tensor:
    launch, frames, weight = _plugin_entry(settings), frames.contiguous(), weight.contiguous()
    out = torch.full(motion_shape(frames), torch.nan, dtype=weight.dtype, device=frames.device)
    stacks, count, _, height, width = frames.shape
    pointers = [ctypes.c_void_p(item.data_ptr()) for item in (frames, weight, out)]
    sizes = (ctypes.c_int64(stacks), ctypes.c_int64(count), height, width)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    if status := launch(int(weight.dtype == torch.float16), *pointers, *sizes, ctypes.c_float(eps), 0, stream):
        raise RuntimeError(f"the plugin's kernel was not launched: CUDA error {status}")
    return out


def sanitizer(results: Results) -> None:
    """Run the plugin's kernel in a C++ program under each of compute-sanitizer's tools."""
    program = str(results.settings.folder / "pa_kernel_run")
    _nvcc(results.settings, "-lineinfo", str(Path(__file__).with_name("pa_kernel_run.cu")), "-o", program)

    def check(kind: str) -> None:
        done = _toolkit("compute-sanitizer", "--tool", kind, "--error-exitcode", "9", program)
        results.check(f"plugin's kernel under {kind}", passed=done.returncode == 0, said=(done.stdout + done.stderr)[-200:])

    for kind in ("memcheck", "racecheck", "initcheck"):
        results.attempt(kind, partial(check, kind))


def _nvcc(settings: Settings, *args: str) -> None:
    if settings.rehearsal:
        raise NotHere("kernels compiled for a GPU have no rehearsal on the CPU")
    done = _toolkit("nvcc", "-std=c++17", "-O3", "-arch=native", f"-I{SOURCES}", str(SOURCES / "pa_kernel.cu"), *args)
    if done.returncode:
        raise RuntimeError(done.stderr)


def _toolkit(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the CUDA toolkit; raise NotHere where it is not installed."""
    path = f"{os.environ['PATH']}:/usr/local/cuda/bin"
    try:
        return subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NotHere(f"{command[0]} is neither on the path nor in /usr/local/cuda/bin") from error

"""The part `persistence` of the GPU suite: the PA op's bodies against the formula in float64, their speed and their memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowless.bench.gpu.clock import device_ms, full_float32, need_device, peak_bytes
from flowless.bench.gpu.ledger import Ledger, NotHere
from flowless.bench.gpu.machine import tera_per_second
from flowless.train.pa import persistence as pa
from flowless.train.pa.convolution_forms import TOLERANCES, motion_shape, persistence_by_pixels

#: What enters the product -> the types of frames and weight.
ARITHMETIC = {
    "float32": (torch.float32, torch.float32),
    "tf32": (torch.float32, torch.float32),
    "float16": (torch.float16, torch.float16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "uint8": (torch.uint8, torch.float32),
}
_WHAT = ("maps", "frames' gradient", "weight's gradient")
#: MACs of one place of a map, by the plain form: eight 7 x 7 filters over three colours, and eight squares.
_MACS = 8 * (3 * 7 * 7 + 1)


class Case(NamedTuple):
    """Frames `[S, m, 3, H, W]` and weight `[8, 3, 7, 7]`, float64; `pixels`: whole numbers from 0 to 255."""

    name: str
    frames: Tensor
    weight: Tensor
    eps: float
    pixels: bool


def cases() -> list[Case]:
    """Return what bodies of the op like to differ on, as far as float16 can hold it."""
    random = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    def pixels(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=random).double()

    one = torch.full((1, 2, 3, 33, 40), 90.0, dtype=torch.float64)
    one[0, 1, 1, 16, 20] = 91
    weight = 0.1 * normal(8, 3, 7, 7)
    return [
        Case("random", normal(2, 3, 3, 40, 52), weight, 1e-2, pixels=False),
        Case("constant in time", normal(1, 1, 3, 32, 36).repeat(1, 3, 1, 1, 1), weight, 1e-6, pixels=False),
        Case("one pixel changes by one", one, weight, 1e-3, pixels=True),
        Case("odd sides", pixels(2, 3, 3, 23, 41), weight, 1e-3, pixels=True),
        Case("one pixel large", pixels(2, 2, 3, 1, 1), weight, 1e-3, pixels=True),
        Case("filters with the scale of normalisation", pixels(1, 3, 3, 30, 30), weight / 58, 1e-12, pixels=True),
        Case("large magnitude", 1e3 * normal(1, 3, 3, 24, 24), weight, 1e-3, pixels=False),
        Case("the network's own size", pixels(1, 2, 3, 224, 224), weight / 58, 1e-12, pixels=True),
    ]


def persistence(ledger: Ledger) -> None:
    """Check the bodies that serve the device, then time them beside the plain form."""
    device = need_device(ledger.settings)
    full_float32()
    bodies = [name for name in ("triton", "torch") if _serves(name, device, ledger)]
    for body in bodies:
        for arithmetic in ARITHMETIC:
            if arithmetic == "tf32" and (body != "triton" or device.type != "cuda"):
                continue
            with ledger.trial(f"{body} {arithmetic}"):
                _check(ledger, body, arithmetic, device)
    sizes = ((2, 2, 24),) if ledger.settings.rehearsal else ((8, 4, 224), (8, 6, 224))
    for segments, frames, side in sizes:
        for batch in ledger.settings.batches:
            for arithmetic in ARITHMETIC:
                name = f"{segments}x{frames} frames of {side}, batch {batch}, {arithmetic}"
                if arithmetic == "bfloat16" or (arithmetic == "tf32" and device.type != "cuda") or not ledger.in_time(name):
                    continue
                _time(ledger, arithmetic, (batch * segments, frames, 3, side, side), bodies, device)


def _serves(body: str, device: torch.device, ledger: Ledger) -> bool:
    """Whether a body runs on the device; where it does not, why, in the ledger."""
    probe = torch.zeros((1, 2, 3, 8, 8), device=device)
    with ledger.trial(body), chosen(body, float32=True):
        try:
            pa.implementation(probe, torch.zeros((8, 3, 7, 7), device=device))
        except pa.FlowlessError as error:
            raise NotHere(str(error)) from error
        return True
    return False


def _check(ledger: Ledger, body: str, arithmetic: str, device: torch.device) -> None:
    """Compare maps and gradients of all cases with the formula; write down the worst case of each."""
    worst: dict[str, tuple[float, str]] = {}
    with chosen(body, float32=arithmetic != "tf32"):
        for case in cases():
            if arithmetic == "uint8" and not case.pixels:
                continue
            for what, error in errors(case, arithmetic, device).items():
                # The first error that is no number stays the worst.
                known = worst.get(what, (-1.0, ""))
                if known[0] == known[0] and not error <= known[0]:
                    worst[what] = (error, case.name)
    for what, (error, name) in worst.items():
        # A gradient divides by the map as it was rounded: twice the tolerance.
        allowed = TOLERANCES[arithmetic] * (1 if what == "maps" else 2)
        ledger.check(f"{body} {arithmetic} {what}", passed=error <= allowed, error=error, allowed=allowed, worst=name)


def errors(case: Case, arithmetic: str, device: torch.device) -> dict[str, float]:
    """Return the largest errors of maps and gradients against float64 on the CPU, each as a part of the largest value."""
    kind, weight_kind = ARITHMETIC[arithmetic]
    frames, weight = case.frames.to(kind), case.weight.to(weight_kind)
    exact = frames.double().requires_grad_(), weight.double().requires_grad_()
    wanted = persistence_by_pixels(*exact, case.eps)
    # Of one sign, so that the weight's gradient, a sum over all places, is no small difference of large numbers; and small enough
    # for float16 to hold the sum.
    upstream = torch.rand(motion_shape(frames), generator=torch.Generator().manual_seed(3))
    upstream = (upstream / upstream.numel() ** 0.5).to(weight_kind)
    gradients = torch.autograd.grad(wanted, exact, upstream.double())
    truth: dict[str, Tensor] = dict(zip(_WHAT, (wanted, *gradients), strict=True))
    frames, weight = frames.to(device), weight.to(device).requires_grad_()
    sources = [weight]
    if kind.is_floating_point:
        sources.insert(0, frames.requires_grad_())
    maps = torch.ops.flowless.persistence(frames, weight, case.eps)
    gradients = torch.autograd.grad(maps, sources, upstream.to(device))
    found = dict(zip(("maps", *_WHAT[-len(sources) :]), (maps, *gradients), strict=True))
    return {name: _error(value, truth[name]) for name, value in found.items()}


def _error(value: Tensor, truth: Tensor) -> float:
    # What a type cannot hold below its smallest number is no error of a body.
    size = truth.detach().abs().max()
    beyond = (value.detach().double().cpu() - truth.detach()).abs().max() - torch.finfo(value.dtype).tiny
    return float(beyond.clamp(min=0) / size) if size else float(beyond.clamp(min=0))


def _time(ledger: Ledger, arithmetic: str, shape: tuple[int, ...], bodies: list[str], device: torch.device) -> None:
    """Time the plain form and the bodies on one size: forward, and forward with backward."""
    kind, weight_kind = ARITHMETIC[arithmetic]
    random = torch.Generator(device).manual_seed(1)
    frames = torch.randint(0, 256, shape, device=device, generator=random, dtype=torch.uint8).to(kind)
    weight = (0.002 * torch.randn((8, 3, 7, 7), device=device, generator=random)).to(weight_kind).requires_grad_()
    if kind.is_floating_point:
        frames.requires_grad_()
    plain_ms: dict[str, float] = {}
    for body in ("plain", *bodies):
        with ledger.trial(f"{body} {arithmetic} {list(shape)}"), chosen(body, float32=arithmetic != "tf32"):
            row: dict[str, Any] = {"body": body, "arithmetic": arithmetic, "shape": list(shape)}
            for what, call in _calls(body, frames, weight).items():
                timing = device_ms(call, device=device, most_seconds=ledger.settings.most_seconds / 4)
                peak = peak_bytes(call, device=device)
                row |= {f"{what}_ms_p50": timing.p50_ms, f"{what}_ms_p99": timing.p99_ms}
                row[f"{what}_peak_mb"] = None if peak is None else round(peak / 1e6, 1)
                plain_ms.setdefault(what, timing.p50_ms)
                row[f"{what}_times_plain"] = round(plain_ms[what] / max(timing.p50_ms, 1e-6), 2)
            ledger.row(**row, **_rates(frames, weight, row["forward_ms_p50"]))


def _calls(body: str, frames: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    sources = [item for item in (frames, weight) if item.requires_grad]

    def maps() -> Tensor:
        if body == "plain":
            return persistence_by_pixels(frames.to(weight.dtype), weight, pa.EPS)
        return torch.ops.flowless.persistence(frames, weight, pa.EPS)

    def forward() -> None:
        with torch.no_grad():
            maps()

    upstream = torch.ones(motion_shape(frames), dtype=weight.dtype, device=frames.device)
    return {"forward": forward, "training": lambda: torch.autograd.grad(maps(), sources, upstream)}


def _rates(frames: Tensor, weight: Tensor, milliseconds: float) -> dict[str, Any]:
    """Return maps a second; what is read and written at least, and computed by the plain form, a second."""
    stacks, pairs, height, width = motion_shape(frames)
    maps = stacks * pairs
    seconds = max(milliseconds, 1e-6) / 1e3
    least = frames.numel() * frames.element_size() + maps * height * width * weight.element_size()
    return {
        "maps": maps,
        "maps_per_s": round(maps / seconds, 1),
        "least_gb_per_s": round(least / seconds / 1e9, 1),
        "tflop_per_s": tera_per_second(2 * maps * height * width * _MACS, milliseconds),
    }


@contextmanager
def chosen(body: str, *, float32: bool) -> Iterator[None]:
    """Have the op use a body, and fp32 in full or TF32, for the block; afterwards as before, fp32 in full."""
    before = os.environ.pop("FLOWLESS_PA", None)
    if body != "plain":
        os.environ["FLOWLESS_PA"] = body
    full_float32(float32)
    try:
        yield
    finally:
        full_float32()
        os.environ.pop("FLOWLESS_PA", None)
        if before is not None:
            os.environ["FLOWLESS_PA"] = before

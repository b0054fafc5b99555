"""The part `pa-forms` of the GPU suite: the PA op by layout and type, beside its plain form compiled and the plugin's kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowless.bench.gpu.clock import device_ms, full_float32, need_device, peak_bytes
from flowless.bench.gpu.kernels import plugin_entry, plugin_launch
from flowless.bench.gpu.ledger import Ledger
from flowless.bench.gpu.persistence import chosen
from flowless.train.pa import persistence as pa
from flowless.train.pa.convolution_forms import motion_shape, persistence_by_phases, persistence_by_pixels

#: Seconds that torch.compile takes for one form.
_COMPILE_SECONDS = 6.0


@dataclass
class _Frames:
    """The frames of 256 segments of 4 in the layouts and types in which they come; a decoder leaves `[.., H, W, C]`."""

    stored: Tensor
    weight: Tensor
    seen: Tensor = field(init=False)
    floats_seen: Tensor = field(init=False)
    floats: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.seen = self.stored.movedim(-1, -3)
        self.floats_seen = self.stored.float().movedim(-1, -3)
        self.floats = self.floats_seen.contiguous()


def pa_forms(ledger: Ledger) -> None:
    """Time every form; what the models run first, what torch.compile makes last."""
    device = need_device(ledger.settings)
    stacks, side = (2, 48) if ledger.settings.rehearsal else (256, 224)
    stored = torch.randint(0, 256, (stacks, 4, side, side, 3), dtype=torch.uint8, device=device)
    frames = _Frames(stored, 0.002 * torch.randn((8, 3, 7, 7), device=device))
    bodies = ("plain", "triton", "torch") if device.type == "cuda" else ("plain",)
    for body in bodies:
        _op(ledger, frames, body)
    for body in bodies:
        _gradients(ledger, frames, body)
    _time(ledger, frames, "clip.float() alone", frames.stored.float)
    if device.type == "cuda":
        with ledger.trial("plugin's CUDA kernel"):
            _plugin(ledger, frames)
    _plain(ledger, frames)
    full_float32()


def _op(ledger: Ledger, frames: _Frames, body: str) -> None:
    op, weight, halves = torch.ops.flowless.persistence, frames.weight, frames.floats.half()
    forms: list[tuple[str, Tensor, Tensor, bool]] = [
        ("uint8, colours last", frames.seen, weight, True),
        ("float32, colours last", frames.floats_seen, weight, True),
        ("tf32, colours last", frames.floats_seen, weight, False),
        ("float16, planes", halves, weight.half(), True),
        ("uint8, planes", frames.seen.contiguous(), weight, True),
        ("float32, planes", frames.floats, weight, True),
    ]
    for name, x, w, full in forms:
        # The body is asked for within the trial: one that is demanded may not serve these types.
        with chosen(body, float32=full), ledger.trial(f"{name} by {body}"):
            _time(ledger, frames, name, lambda x=x, w=w: op(x, w, pa.EPS), body=pa.implementation(x, w), demanded=body != "plain")


def _gradients(ledger: Ledger, frames: _Frames, body: str) -> None:
    """Time forward and the weight's gradient, which is what training asks for."""
    weight = frames.weight.clone().requires_grad_()
    upstream = torch.rand(motion_shape(frames.seen), device=weight.device)
    for name, x in (("uint8, colours last", frames.seen), ("float32, colours last", frames.floats_seen)):

        def back(x: Tensor = x) -> object:
            with torch.enable_grad():
                return torch.autograd.grad(torch.ops.flowless.persistence(x, weight, pa.EPS), weight, upstream)

        what = f"forward and weight's gradient, {name}"
        with chosen(body, float32=True), ledger.trial(f"{what} by {body}"):
            both = " and ".join(dict.fromkeys((pa.implementation(x, weight), pa.implementation(x, weight, backward=True))))
            _time(ledger, frames, what, back, body=both, demanded=body != "plain")


def _plugin(ledger: Ledger, frames: _Frames) -> None:
    entry = plugin_entry(ledger.settings.folder)
    for name, half, x, w in (("fp32", 0, frames.floats, frames.weight), ("fp16", 1, frames.floats.half(), frames.weight.half())):
        out, launch = torch.empty(motion_shape(x), dtype=w.dtype, device=x.device), plugin_launch(entry, half, pa.EPS)
        _time(ledger, frames, f"plugin's CUDA kernel, {name}", lambda x=x, w=w, out=out, launch=launch: launch(x, w, out))


def _plain(ledger: Ledger, frames: _Frames) -> None:
    modes = {"fp32": True, "tf32": False} if frames.weight.is_cuda else {"fp32": True}
    forms = {"by phases": persistence_by_phases, "by pixels": persistence_by_pixels}
    for mode, full in modes.items():
        full_float32(full)
        for name, form in forms.items():
            _time(ledger, frames, f"plain {name}, {mode}", lambda form=form: form(frames.floats, frames.weight, pa.EPS))
    for mode, full in modes.items():
        full_float32(full)
        for name, form in forms.items():
            what = f"torch.compile {name}, {mode}"
            if ledger.in_time(what, needs=_COMPILE_SECONDS if frames.weight.is_cuda else 0):
                # In a rehearsal without its backend, which on a CPU is a C++ compiler's minutes.
                backend = "inductor" if frames.weight.is_cuda else "eager"
                compiled = torch.compile(lambda x, w, form=form: form(x, w, pa.EPS), dynamic=False, backend=backend)
                _time(ledger, frames, what, lambda compiled=compiled: compiled(frames.floats, frames.weight))


def _time(ledger: Ledger, frames: _Frames, name: str, call: Callable[[], object], **more: Any) -> None:
    """Write down the milliseconds of a call, its maps a second and the memory that it takes beyond its arguments."""
    device = frames.weight.device
    stacks, pairs = motion_shape(frames.seen)[:2]
    with ledger.trial(f"{name}{' by ' + more['body'] if more.get('demanded') else ''}"), torch.no_grad():
        timing = device_ms(call, device=device, most_seconds=ledger.share(40))
        peak = peak_bytes(call, device=device)
        ledger.row(
            form=name,
            **more,
            ms_p50=timing.p50_ms,
            runs=timing.runs,
            maps_per_s=round(1e3 * stacks * pairs / max(timing.p50_ms, 1e-6)),
            peak_mb=None if peak is None else round(peak / 1e6),
        )

"""The parts `eager` and `compiled` of the GPU suite: the network in PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from flowless.bench.gpu.clock import full_float32, need_device
from flowless.bench.gpu.engines import measure
from flowless.bench.gpu.ledger import Ledger
from flowless.bench.gpu.network import load_network, load_reference

#: Precision -> the type of autocast, with channels last; None: no autocast. The most used first: time may run out.
PRECISIONS = {"bf16": torch.bfloat16, "fp32": None, "fp16": torch.float16, "tf32": None}

#: What one compilation and its measurement took on an H200 (14 to 17 s, and two to three).
_COMPILE_SECONDS = 19.0


class TorchRunner:
    """The network, called under autocast where the precision is a half one."""

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], *, device: torch.device, kind: torch.dtype | None) -> None:
        self._model, self._device, self._kind = model, device, kind

    def scores(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 scores `[B, classes]` of uint8 clips in the host's memory."""
        return self._forward(torch.from_numpy(clips).to(self._device)).float().cpu().numpy()

    def placed(self, clips: np.ndarray) -> Callable[[], object]:
        """Put clips into the device's memory, and return what runs them once."""
        there = torch.from_numpy(clips).to(self._device)
        return lambda: self._forward(there)

    def _forward(self, clips: torch.Tensor) -> torch.Tensor:
        cast = torch.autocast(self._device.type, self._kind) if self._kind else nullcontext()
        with torch.inference_mode(), cast:
            return self._model(clips)


def eager(ledger: Ledger) -> None:
    """Measure the network under autocast to bf16 and fp16 with channels last, and as it is, in full float32 and TF32."""
    device = need_device(ledger.settings)
    reference = load_reference(ledger.settings)
    first, *more = ledger.settings.batches
    batches = (more[-1], first, *more[:-1])
    for precision in _precisions(device):
        if not ledger.in_time(precision):
            continue
        with ledger.trial(precision):
            model = _model(ledger, precision, device)
            runner = TorchRunner(model, device=device, kind=PRECISIONS[precision])
            measure(ledger, runner, reference, name="pytorch eager", precision=precision, batches=batches)
    full_float32()


def compiled(ledger: Ledger) -> None:
    """Measure the network through torch.compile, one compilation a batch; and with CUDA graphs, for one clip."""
    device = need_device(ledger.settings)
    reference = load_reference(ledger.settings)
    small, *_, large = ledger.settings.batches
    # The most useful first: what is left when the time is spent is left out.
    plan: list[tuple[str, str | None, int]] = [
        ("bf16", None, large),
        ("bf16", "reduce-overhead", small),
        ("fp16", None, large),
        ("bf16", None, small),
        ("fp32", None, large),
        ("fp32", None, small),
        ("fp16", None, small),
        ("bf16", None, ledger.settings.batches[1]),
    ]
    if ledger.settings.rehearsal:
        plan = [("fp32", None, small), ("fp32", None, large)]
    for precision, mode, batch in dict.fromkeys(plan):
        what = f"{precision} {mode or 'default'}, batch {batch}"
        if ledger.in_time(what, needs=_COMPILE_SECONDS if device.type == "cuda" else 0):
            with ledger.trial(what):
                _compile(ledger, reference, (precision, mode, batch), device)
    full_float32()


def _compile(ledger: Ledger, reference: Any, what: tuple[str, str | None, int], device: torch.device) -> None:
    precision, mode, batch = what
    torch.compiler.reset()
    model = torch.compile(_model(ledger, precision, device), dynamic=False, mode=mode)
    runner = TorchRunner(model, device=device, kind=PRECISIONS[precision])
    name = "torch.compile" if mode is None else f"torch.compile {mode}"
    started = time.monotonic()
    runner.scores(reference.tiled(batch).clips[:batch])
    seconds = round(time.monotonic() - started, 1)
    # Clips that do not fill the last batch would be compiled once more: as many as do.
    whole = reference.tiled(-(-len(reference.clips) // batch) * batch)
    measure(ledger, runner, whole, name=name, precision=precision, batches=(batch,))
    ledger.fact(compile_seconds={**ledger.facts.get("compile_seconds", {}), f"{name} {precision}, batch {batch}": seconds})


def _precisions(device: torch.device) -> list[str]:
    return [name for name in PRECISIONS if device.type == "cuda" or name != "tf32"]


def _model(ledger: Ledger, precision: str, device: torch.device) -> Any:
    full_float32(precision != "tf32")
    model = load_network(ledger.settings).to(device)
    return model.to(memory_format=torch.channels_last) if PRECISIONS[precision] else model

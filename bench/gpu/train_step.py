"""The part `train-step` of the GPU suite: a step of training in the ways that `flowless train` has, and some that it has not."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from flowless.bench.gpu.clock import full_float32, need_device, synchronise
from flowless.bench.gpu.ledger import Ledger
from flowless.bench.gpu.network import spec_of
from flowless.bench.gpu.persistence import chosen

#: Steps at least, so that a loss can be seen to fall; and at most.
_LEAST_STEPS, _MOST_STEPS = 6, 24
#: Steps that are not timed: kernels are compiled, memory is asked for.
_WARM_UP = 2


@dataclass(frozen=True)
class Way:
    """One way to train."""

    what: str
    kind: torch.dtype | None = torch.bfloat16
    """What autocast computes in; None: no autocast."""
    body: str = "plain"
    """The body of PA that is demanded; plain: the one that the op chooses."""
    ddp: bool = False
    compiled: bool = False
    benchmark: bool = False
    """Let cuDNN try its algorithms, which makes the first step long."""
    needs: float = 4.0
    """Seconds that it takes at least on an H200, its first step with it."""


#: The most useful first; what compiles or tries algorithms last, since nobody can stop it half-way.
_WAYS = (
    Way("bf16 autocast"),
    Way("bf16 autocast, PA by PyTorch", body="torch"),
    Way("bf16 autocast, PA by Triton", body="triton"),
    Way("bf16 autocast, DDP of one process", ddp=True),
    Way("TF32", kind=None),
    Way("bf16 autocast, cudnn.benchmark", benchmark=True, needs=18),
    Way("bf16 autocast, torch.compile", compiled=True, needs=75),
)


def train_step(ledger: Ledger) -> None:
    """Time steps of PAN-Lite on clips in the device's memory, and check that losses fall, and that DDP gives the same ones."""
    device = need_device(ledger.settings)
    ways = [way for way in _WAYS if device.type == "cuda" or _rehearsed(way)]
    losses: dict[str, list[float]] = {}
    for place, way in enumerate(ways):
        if ledger.in_time(way.what, needs=way.needs if device.type == "cuda" else 0):
            with ledger.trial(way.what):
                losses[way.what] = _run(ledger, way, device, seconds=ledger.seconds_left() / (len(ways) - place))
    full_float32()
    alone, ddp = (losses.get(way.what) for way in ways if way.what in {"bf16 autocast", "bf16 autocast, DDP of one process"})
    if alone and ddp:
        both = min(len(alone), len(ddp))
        same = bool(np.allclose(alone[:both], ddp[:both], rtol=2e-2))
        ledger.check("DDP of one process: the same losses", passed=same, alone=alone[both - 1], ddp=ddp[both - 1])


def _run(ledger: Ledger, way: Way, device: torch.device, *, seconds: float) -> list[float]:
    """Train for some steps; write the row down and return the losses."""
    rehearsal, cuda = ledger.settings.rehearsal, device.type == "cuda"
    batch = 4 if rehearsal else 32
    end = time.monotonic() + seconds
    losses: list[float] = []
    times: list[float] = []
    torch.backends.cudnn.benchmark = way.benchmark
    with chosen(way.body, float32=way.kind is not None), _alone(ledger, way, device) as wrap:
        step = _stepper(ledger, way, device, (batch, wrap))
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        most = _LEAST_STEPS if rehearsal else _MOST_STEPS
        while len(times) < _LEAST_STEPS or (time.monotonic() < end and len(times) < most):
            synchronise(device)
            start = time.perf_counter()
            loss = step()
            synchronise(device)
            times.append(time.perf_counter() - start)
            losses.append(loss.item())
    seconds_a_step = float(np.median(times[_WARM_UP:]))
    ledger.row(
        what=way.what,
        batch=batch,
        steps=len(times),
        ms_per_step=round(1e3 * seconds_a_step, 2),
        clips_per_s=round(batch / seconds_a_step, 1),
        first_step_ms=round(1e3 * times[0]),
        peak_gb=round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
        first_loss=round(losses[0], 4),
        last_loss=round(losses[-1], 4),
    )
    passed = bool(np.isfinite(losses).all() and losses[-1] < losses[0])
    ledger.check(f"{way.what}: losses are finite and fall", passed=passed, first=losses[0], last=losses[-1])
    return losses


def _stepper(ledger: Ledger, way: Way, device: torch.device, how: tuple[int, Callable[[Any], Any]]) -> Callable[[], torch.Tensor]:
    from flowless.train.loop.optimizer import build_optimizer, set_rate
    from flowless.train.models import build_model
    from flowless.train.models.backbones.timm_backbones import to_channels_last
    from flowless.train.recipes import find_recipe

    (batch, wrap), spec = how, spec_of(ledger.settings)
    name, width = ("pan-lite-r18", 0.25) if ledger.settings.rehearsal else ("pan-lite-r50", 1.0)
    torch.manual_seed(0)
    model = to_channels_last(build_model(name, classes=174, spec=spec, width=width, dropout=0.0)).to(device).train()
    clips = torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8, device=device)
    labels = torch.arange(batch, device=device) % 174
    optimizer = build_optimizer(model, find_recipe(f"{name}/something-v1", pretrained=False))
    set_rate(optimizer, 1e-3)
    network = wrap(model)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, way.kind, enabled=way.kind is not None):
            loss = torch.nn.functional.cross_entropy(network(clips).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@contextmanager
def _alone(ledger: Ledger, way: Way, device: torch.device) -> Iterator[Callable[[Any], Any]]:
    """Give what makes the network that is called of the model: as it is, compiled, or in a process group of this process alone."""
    full_float32(way.kind is not None)
    if way.compiled:
        torch.compiler.reset()
        yield lambda model: torch.compile(model, dynamic=False)
    elif way.ddp:
        with tempfile.TemporaryDirectory(dir=ledger.settings.folder) as folder:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", init_method=f"file://{folder}/ddp", rank=0, world_size=1)
            try:
                yield lambda model: torch.nn.parallel.DistributedDataParallel(model, device_ids=[0] if device.type == "cuda" else None)
            finally:
                dist.destroy_process_group()
    else:
        yield lambda model: model


def _rehearsed(way: Way) -> bool:
    return way.kind is not None and way.body != "triton" and not way.compiled and not way.benchmark

"""The part `models` of the GPU suite: every family of networks under autocast, eager and replayed as a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from flowless.bench.gpu.clock import answer_ms, back_to_back_ms, figures, full_float32, need_device
from flowless.bench.gpu.ledger import Ledger
from flowless.bench.gpu.network import spec_of
from flowless.pipeline.clip.spec import ClipSpec

#: Network -> frames of a segment, as its paper has them (None: as many as PAN's). The most used first: time may run out.
FRAMES: dict[str, int | None] = {
    "pan-lite-r50": None,
    "tsm-r50": 1,
    "da-tsm-r50": None,
    "tsn-r50": 1,
    "pan-full-r50": None,
    "stm-r50": 1,
    "da-x3d-m": None,
    "da-vit-b": None,
    "disentangling-bninception": None,
    "pan-en-r50": None,
}
#: The one of them that is measured in fp16 too.
_BOTH = "pan-lite-r50"
#: Measurements of one network: two batches, two ways, a latency and a throughput each.
_MEASUREMENTS = 8
#: What building a network, counting it and choosing its algorithms took at most on an H200.
_BUILD_SECONDS = 5.0


def models(ledger: Ledger) -> None:
    """Measure latency and throughput of each network, the shares by its own arithmetic."""
    device = need_device(ledger.settings)
    full_float32(False)
    torch.backends.cudnn.benchmark = True
    names = list(FRAMES) if device.type == "cuda" and not ledger.settings.quick else list(FRAMES)[: 1 if ledger.settings.rehearsal else 2]
    for place, name in enumerate(names):
        if not ledger.in_time(name, needs=_BUILD_SECONDS):
            continue
        with ledger.trial(name):
            _measure(ledger, name, device, left=len(names) - place)
    full_float32()


def _measure(ledger: Ledger, name: str, device: torch.device, *, left: int) -> None:
    from flowless.train.models import build_model
    from flowless.train.models.backbones.timm_backbones import to_channels_last
    from flowless.train.models.flops import count

    spec = _spec(ledger, name)
    torch.manual_seed(0)
    started = time.monotonic()
    model = build_model(name, classes=174, spec=spec, width=0.25 if ledger.settings.rehearsal else 1.0)
    macs = count(model).macs
    model = to_channels_last(model).eval().to(device)
    ledger.fact(built_seconds={**ledger.facts.get("built_seconds", {}), name: round(time.monotonic() - started, 1)})
    kinds = {"bf16": torch.bfloat16} | ({"fp16": torch.float16} if name == _BOTH and device.type == "cuda" else {})
    seconds = ledger.share(_MEASUREMENTS * len(kinds) * left * 2)
    for precision, kind in kinds.items():
        # The largest batch first: what a card can do; then what one clip waits for.
        for batch in (ledger.settings.batches[-1], 1):
            clips = torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8, device=device)
            row = {"name": name, "precision": precision, "batch": batch, "macs_per_clip": macs}

            def call(clips: torch.Tensor = clips, kind: torch.dtype = kind) -> torch.Tensor:
                with torch.inference_mode(), torch.autocast(device.type, kind):
                    return model(clips)

            scores = call()
            if not torch.isfinite(scores).all():
                raise RuntimeError(f"{name} in {precision} gives scores that are not finite")
            ledger.row(**row, how="eager", **_speed(call, batch, device, seconds))
            if device.type == "cuda":
                with ledger.trial(f"{name} {precision}, batch {batch}, CUDA graph"):
                    replay, out = captured(call)
                    replay()
                    off = float((out.float() - scores.float()).abs().max() / scores.float().abs().max())
                    ledger.row(**row, how="CUDA graph", **_speed(replay, batch, device, seconds), differs=off)


def captured(call: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Capture a call in a CUDA graph; return what replays it, and the tensor in which its result then lies."""
    # PyTorch asks for warm-up calls on another stream, so that nothing is set up while the graph is captured.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph.replay, out


def _speed(call: Callable[[], object], batch: int, device: torch.device, seconds: float) -> dict[str, Any]:
    waited = answer_ms(call, device=device, most_seconds=seconds)
    streamed = back_to_back_ms(call, device=device, most_seconds=seconds)
    return {**figures(waited), "clips_per_s": round(1e3 * batch / max(streamed, 1e-6), 2)}


def _spec(ledger: Ledger, name: str) -> ClipSpec:
    spec = spec_of(ledger.settings)
    return ClipSpec(**{**spec.to_dict(), "frames_per_segment": FRAMES[name] or spec.frames_per_segment})

"""The part `files` of the GPU suite: from video file to scores, the loader's ways feeding the network."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from flowless.bench.gpu.clock import need_device, synchronise
from flowless.bench.gpu.ledger import Ledger
from flowless.bench.gpu.network import spec_of
from flowless.bench.gpu.videos import clip_loader, made_videos

#: Batches before the clock starts: the loader's graph is built, its queue is in its steady state.
_WARM_UP = 3
#: More copies of the videos than any machine scores in the part's seconds.
_COPIES = 2000


def video_scores(ledger: Ledger) -> None:
    """Count clips that were read, decoded, resized and scored in bf16, for as many seconds as the part has for each decoder."""
    device = need_device(ledger.settings)
    rehearsal = ledger.settings.rehearsal
    index = made_videos(ledger.settings)
    copies = 64 if rehearsal else _COPIES
    many = replace(index, videos=tuple(replace(video, id=f"{video.id}#{copy}") for copy in range(copies) for video in index.videos))
    model = _model(ledger, device)
    where = "gpu" if device.type == "cuda" else "cpu"
    # PyAV first: it decodes everything everywhere.
    for place, decoder in enumerate(("pyav", "dali")):
        if ledger.in_time(decoder):
            with ledger.trial(decoder, may_refuse=where == "cpu"):
                seconds = 2.0 if rehearsal else min(ledger.seconds_left() / (2 - place), 15.0)
                loader = clip_loader(many, ledger.settings, device=where, decoder=decoder)
                ledger.row(decoder=decoder, loader=where, **_rate(loader, model, device, seconds))


def _rate(loader: Any, model: torch.nn.Module, device: torch.device, seconds: float) -> dict[str, Any]:
    clips, sound, end, start = 0, True, time.monotonic() + seconds, 0.0
    for number, batch in enumerate(loader):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            scores = model(batch.clips.squeeze(1).to(device))
        if number == _WARM_UP - 1:
            synchronise(device)
            start = time.monotonic()
        elif number >= _WARM_UP:
            clips += len(batch.ids)
            sound = sound and bool(torch.isfinite(scores).all())
            if time.monotonic() >= end:
                break
    synchronise(device)
    spent = time.monotonic() - start
    if not clips or not sound:
        raise RuntimeError(f"{clips} clips were scored in {seconds:.0f} s{'' if sound else ', and some scores are not finite'}")
    return {"clips": clips, "seconds": round(spent, 2), "clips_per_s": round(clips / spent, 1)}


def _model(ledger: Ledger, device: torch.device) -> torch.nn.Module:
    from flowless.train.models import build_model
    from flowless.train.models.backbones.timm_backbones import to_channels_last

    name, width = ("pan-lite-r18", 0.25) if ledger.settings.rehearsal else ("pan-lite-r50", 1.0)
    ledger.fact(model=name, precision="bf16")
    return to_channels_last(build_model(name, classes=174, spec=spec_of(ledger.settings), width=width)).eval().to(device)

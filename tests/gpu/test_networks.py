"""Networks on a GPU: the scores that they have on a CPU, training that learns and repeats itself, clips that DALI left there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowless.bench.lib.networks import random_clips, random_model
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import build_model

pytestmark = pytest.mark.gpu
SPEC = ClipSpec(segments=4, frames_per_segment=3, height=48, width=64, short_side=64)


@pytest.mark.parametrize("name", ["tsm-r18", "pan-lite-r18", "pan-lite-r50"])
def test_scores_are_the_cpus(name: str) -> None:
    model = random_model(name, classes=7, spec=SPEC, width=0.25)
    clips = torch.from_numpy(random_clips(3, SPEC, seed=4))
    with torch.inference_mode():
        expected = model(clips)
        found = model.cuda()(clips.cuda()).cpu()
    np.testing.assert_allclose(found, expected, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_training_learns_and_repeats_itself(kind: torch.dtype) -> None:
    """Two classes that differ in motion alone; twice with one seed gives one loss, to what cuDNN's order of additions leaves."""
    clips = torch.from_numpy(random_clips(8, SPEC, seed=5)).cuda()
    clips[::2] = clips[::2, :, :1]  # every other clip stands still
    labels = torch.tensor([0, 1] * 4).cuda()

    def losses() -> list[float]:
        torch.manual_seed(0)
        model = build_model("pan-lite-r18", classes=2, spec=SPEC, width=0.25, dropout=0.0).cuda().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cuda", enabled=kind == torch.float16)
        found = []
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cuda", kind):
                loss = torch.nn.functional.cross_entropy(model(clips), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            found.append(loss.item())
        return found

    first, again = losses(), losses()
    assert np.isfinite(first).all()
    assert first[-1] < 0.5 * first[0]
    assert first[0] == pytest.approx(again[0], rel=1e-2)


def test_clips_stay_where_dali_put_them(train_index) -> None:
    pytest.importorskip("nvidia.dali")
    from flowless.pipeline.loading.augment import LoaderOptions
    from flowless.pipeline.loading.loader import ClipLoader

    spec = ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=32)
    options = {device: LoaderOptions(device=device, decoder="pyav") for device in ("cpu", "gpu")}
    loaders = [ClipLoader(train_index, spec, rule="centre", batch_size=8, options=options[device]) for device in ("cpu", "gpu")]
    model = random_model("pan-lite-r18", classes=4, spec=spec, width=0.25)
    for here, there in zip(*loaders, strict=True):
        assert here.ids == there.ids
        assert there.clips.device.type == "cuda"
        assert (here.clips.int() - there.clips.cpu().int()).abs().max() <= 1
        with torch.inference_mode():
            assert model.cuda()(there.clips[:, 0]).shape == (len(there.ids), 4)

"""The adapter to the official code: against the real clone where FLOWLESS_OFFICIAL_PAN names one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from official_pan import NORMS, OfficialCode, _ChannelDistance, copy_weights, extract_jpegs, load_official, official_layout

from flowless.bench.lib.networks import random_clips, random_model
from flowless.bench.lib.sample_videos import sample_videos
from flowless.bench.motion.motion_methods import PAPER_CLIP, motion_model
from flowless.cli import main
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec


@pytest.fixture(scope="module")
def official() -> OfficialCode:
    place = os.environ.get("FLOWLESS_OFFICIAL_PAN")
    if not place:
        pytest.skip("FLOWLESS_OFFICIAL_PAN does not name a clone of the official PAN code")
    return load_official(Path(place))


def test_what_is_no_clone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "models.py").touch()
    with pytest.raises(FlowlessError, match=r"PAN_modules\.py.*git clone https://github\.com/zhang-can/PAN-PyTorch"):
        load_official(tmp_path)


def test_only_networks_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "peers", "--official", "clone", "--model", "tsn-r50"])
    assert "tsn-r50" in capsys.readouterr().err


@pytest.mark.parametrize("norm", NORMS)
def test_the_distance_is_over_the_channels_with_epsilon_inside(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ChannelDistance, "norm", norm)
    first, second = torch.randn(2, 8, 5), torch.randn(2, 8, 5)
    expected = np.sqrt(((first.double().numpy() - second.double().numpy() + 1e-6) ** 2).sum(1))
    np.testing.assert_allclose(_ChannelDistance(p=2)(first, second).numpy(), expected, rtol=1e-5)
    still = _ChannelDistance(p=2)(first, first)
    np.testing.assert_allclose(still.numpy(), np.sqrt(8) * 1e-6, rtol=1e-3)


def test_its_layout_is_segment_frame_colour() -> None:
    spec = ClipSpec(segments=2, frames_per_segment=3, height=4, width=5, short_side=5)
    clip = np.random.default_rng(0).integers(0, 256, size=(1, *spec.shape), dtype=np.uint8)
    layout = official_layout(clip, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert layout.shape == (1, 18, 4, 5)
    expected = (clip[0, 1, 2, 3, 4, 1] / 255 - 0.2) / 0.6
    assert float(layout[0, (1 * 3 + 2) * 3 + 1, 3, 4]) == pytest.approx(expected, abs=1e-6)


def test_jpegs_one_a_frame_of_height_256(tmp_path: Path) -> None:
    from PIL import Image

    video = sample_videos(tmp_path, count=1, sizes=((160, 120),), frames=9)[0]
    count, how = extract_jpegs(video, tmp_path / "jpegs")
    assert count == 9
    assert how in {"ffmpeg", "libav through PyAV"}
    with Image.open(tmp_path / "jpegs" / "000009.jpg") as picture:
        assert picture.size in {(341, 256), (340, 256), (342, 256)}


@pytest.mark.parametrize("norm", NORMS)
def test_both_compute_the_same_scores(official: OfficialCode, norm) -> None:
    spec = ClipSpec(height=64, width=64, short_side=64)
    ours = random_model("pan-lite-r18", classes=7, spec=spec)
    theirs = official.pan_lite(backbone="resnet18", classes=7, segments=8, frames=4)
    copy_weights(ours, theirs)
    clip = random_clips(2, spec, seed=5)
    with torch.inference_mode(), official.norm(norm):
        expected = ours(torch.from_numpy(clip)).numpy()
        scores = theirs(official_layout(clip, mean=spec.mean, std=spec.std)).numpy()
    assert np.abs(scores - expected).max() < 1e-3 * expected.std()


def test_both_compute_the_same_motion(official: OfficialCode) -> None:
    from dataclasses import replace

    spec = replace(PAPER_CLIP, height=48, width=48, short_side=48)
    model = motion_model(spec)
    theirs = official.persistence(frames=6)
    with torch.inference_mode():
        theirs.shallow_conv.weight.copy_(model.persistence.weight)  # type: ignore[union-attr]
        clip = random_clips(1, spec, seed=5)
        expected = model.motion(torch.from_numpy(clip))[0]
        maps = theirs(official_layout(clip, mean=spec.mean, std=spec.std))
    assert maps.shape == expected.shape == (8, 5, 48, 48)
    assert float((maps - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_both_choose_the_same_frames(official: OfficialCode, tmp_path: Path) -> None:
    """Through JPEGs pixels differ a little; another frame of the moving scene would differ a lot."""
    video = sample_videos(tmp_path, count=1, sizes=((340, 256),), frames=60)[0]
    count, _ = extract_jpegs(video, tmp_path / "jpegs")
    network = official.pan_lite(backbone="resnet18", classes=2, segments=8, frames=4)
    theirs = official.load_stack(tmp_path / "jpegs", frames=count, segments=8, frames_per_segment=4, model=network)
    ours = official_layout(load_clip(video, ClipSpec()), mean=ClipSpec().mean, std=ClipSpec().std)
    difference = (theirs - ours).abs().mean()
    later = (theirs[:, :-12] - ours[:, 12:]).abs().mean()
    assert float(difference) < 0.1
    assert float(difference) < 0.3 * float(later)

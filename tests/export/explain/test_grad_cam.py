"""Grad-CAM: the paper's formula on the layers' own tensors, and maps that lie where the evidence is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowless.cli import main
from flowless.errors import FlowlessError
from flowless.export.explain.cue_pictures import overlaid
from flowless.export.explain.grad_cam import grad_cam
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.video.encode import write_video
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.models import build_model

LABELS = ("wave & greet", "<clap>", "still")
SEGMENTS = 4
#: Model -> the layer of each branch that is weighed, for frames of 128 x 160 and of 48 x 64, and their places. Of the small frames the
#: last stages have 2 x 2 and 3 x 4 places.
LAYERS: dict[str, list[tuple[str, str, tuple[int, int], str, tuple[int, int]]]] = {
    "tsn-r18": [("", "backbone.layer4", (4, 5), "backbone.layer2", (6, 8))],
    "stm-r18": [("", "backbone.layer4", (4, 5), "backbone.layer2", (6, 8))],
    "pan-lite-r18": [("", "backbone.layer4", (4, 5), "backbone.layer2", (6, 8))],
    "da-tsm-r50": [("", "backbone.layer4", (4, 5), "backbone.layer2", (6, 8))],
    "pan-full-r18": [
        ("rgb", "branches.rgb.backbone.layer4", (4, 5), "branches.rgb.backbone.layer2", (6, 8)),
        ("pa", "branches.pa.backbone.layer4", (4, 5), "branches.pa.backbone.layer2", (6, 8)),
    ],
    "da-x3d-xs": [("", "backbone.last", (4, 5), "backbone.blocks.3", (6, 8))],
    "da-vit-b": [("", "backbone.blocks.1.norm1", (8, 10), "backbone.blocks.1.norm1", (3, 4))],
    "disentangling-bninception": [
        ("appearance", "appearance.network.stages.3", (4, 5), "appearance.network.stages.0", (6, 8)),
        ("motion", "motion.network.body.stages.3", (4, 5), "motion.network.body.stages.0", (6, 8)),
        ("changes", "changes.network.body.stages.3", (4, 5), "changes.network.body.stages.0", (6, 8)),
    ],
}


def made(name: str, *, height: int = 128, width: int = 160, blocks: int = 2, **options: Any) -> Any:
    """A model that has seen noise, so that all its channels live, with a classifier whose scores differ by class."""
    frames = 1 if name.startswith(("tsn", "stm")) else 3
    spec = ClipSpec(segments=SEGMENTS, frames_per_segment=frames, height=height, width=width, short_side=width)
    torch.manual_seed(5)
    model = build_model(name, classes=len(LABELS), spec=spec, width=0.25, blocks=blocks, **options)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.data.uniform_(0.5, 1.5)
    with torch.no_grad():
        model.train()(clips_of(model))
    for head in model.heads:
        head.get_parameter("pred.weight").data.normal_(0, 0.5)
    return model.eval()


def clips_of(model: Any, *, count: int = 2) -> torch.Tensor:
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (count, *model.spec.shape[:2], model.spec.height // 8, model.spec.width // 8, 3), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(8, 3).repeat(8, 4))


def by_numpy(features: np.ndarray, gradients: np.ndarray, *, count: int, grid: tuple[int, int]) -> np.ndarray:
    """Eq. 1 and 2 in float64, segment by segment, of a layer's output and its gradient as the layer gives them."""
    rows, columns = grid
    maps = np.zeros((count, SEGMENTS, rows, columns))
    for clip in range(count):
        for segment in range(SEGMENTS):
            if features.ndim == 5:  # [B, C, N, h, w]
                pairs = [(features[clip, :, segment], gradients[clip, :, segment])]
            elif features.ndim == 3:  # [B, N h w, C]
                mine = slice(segment * rows * columns, (segment + 1) * rows * columns)
                pairs = [tuple(part[clip, mine].T.reshape(-1, rows, columns) for part in (features, gradients))]
            else:
                many = len(features) // (count * SEGMENTS)
                first = (clip * SEGMENTS + segment) * many
                pairs = [(features[place], gradients[place]) for place in range(first, first + many)]
            for feature, gradient in pairs:
                for channel in range(len(feature)):
                    alpha = gradient[channel].sum() / (rows * columns)
                    maps[clip, segment] += alpha * feature[channel]
    return np.maximum(maps, 0)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_the_maps_are_the_papers(name, small):
    # BN-Inception with a module a stage: its stages are what counts.
    blocks, count = (1, 1) if name.startswith("disentangling") else (2, 2)
    model = made(name, height=48, width=64, blocks=blocks) if small else made(name, blocks=blocks)
    clips = clips_of(model, count=count)
    found = grad_cam(model, clips, index=1)
    held: dict[str, torch.Tensor] = {}

    def keep(layer: str) -> Any:
        def hook(_: Any, __: Any, out: torch.Tensor) -> None:
            out.retain_grad()
            held[layer] = out

        return model.get_submodule(layer).register_forward_hook(hook)

    wanted = [(branch, *((below, grid) if small else (last, wide))) for branch, last, wide, below, grid in LAYERS[name]]
    hooks = [keep(layer) for _, layer, _ in wanted]
    # The whole network's own gradients, which need no cut in it.
    model(clips)[:, 1].sum().backward()
    for hook in hooks:
        hook.remove()
    assert [(maps.branch, maps.layer) for maps in found] == [(branch, layer) for branch, layer, _ in wanted]
    for maps, (_, layer, grid) in zip(found, wanted, strict=True):
        features, gradient = held[layer].detach().double().numpy(), held[layer].grad
        assert gradient is not None
        assert maps.values.shape == (count, SEGMENTS, *grid)
        reference = by_numpy(features, gradient.double().numpy(), count=count, grid=grid)
        assert reference.max() > 0
        np.testing.assert_allclose(maps.values, reference, rtol=1e-3, atol=1e-4 * reference.max())


def test_late_pooling_adds_a_segments_frames_up():
    model = made("disentangling-bninception", blocks=1, appearance_pooling="late")
    appearance = grad_cam(model, clips_of(model, count=1), index=0)[0]
    assert appearance.values.shape == (1, SEGMENTS, 4, 5)
    assert appearance.values.max() > 0


def test_without_any_gradient_by_hand():
    """TSN's score is the mean over segments and places of the classifier's products with layer4: Grad-CAM is those products."""
    model = made("tsn-r18")
    clips = clips_of(model)
    with torch.no_grad():
        frames = model.normalise(model.as_frames(clips[:, :, 0])).flatten(0, 1)
        features = model.backbone.forward_features(frames).double().numpy()
        bias = float(model.head.pred.bias[2])
        score = model(clips)[:, 2].double().numpy()
    products = np.einsum("c,kchw->khw", model.head.pred.weight[2].detach().double().numpy(), features).reshape(2, SEGMENTS, 4, 5)
    np.testing.assert_allclose(products.mean((1, 2, 3)) + bias, score, rtol=1e-3, atol=1e-3)
    (maps,) = grad_cam(model, clips, index=2)
    np.testing.assert_allclose(maps.values, np.maximum(products, 0) / (SEGMENTS * 20), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["tsn-r18", "stm-r18", "pan-lite-r18", "da-x3d-xs"])
@pytest.mark.parametrize("corner", [0, 1, 2, 3])
def test_a_classs_map_is_where_its_evidence_is(name, corner):
    """A flickering patch in one corner, and a classifier that is asked for what the patch adds to the features."""
    model = made(name, height=256, width=256, blocks=1)
    clip = torch.full((1, *model.spec.shape), 110, dtype=torch.uint8)
    empty = clip.clone()
    rows, columns = (slice(176, 240) if corner > 1 else slice(16, 80)), (slice(176, 240) if corner % 2 else slice(16, 80))
    patch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, *model.spec.shape[:2], 8, 8, 3), dtype=np.uint8))
    clip[:, :, :, rows, columns] = patch.repeat_interleave(8, 3).repeat_interleave(8, 4)
    features: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    with torch.no_grad():
        model(clip)
        model(empty)
    hook.remove()
    added, ground = (features[0] - features[1]).mean((0, 1)), features[1].mean((0, 1))
    # The ground by itself says nothing for the class, nor against it.
    model.head.pred.weight.data[1] = added - (added @ ground) / (ground @ ground) * ground
    model.head.pred.weight.data[2] = -model.head.pred.weight.data[1]
    quarters = []
    for index in (1, 2):
        values = grad_cam(model, clip, index=index)[0].values.sum((0, 1))
        assert values.shape == (8, 8)
        quarters.append(values.reshape(2, 4, 2, 4).sum((1, 3)).ravel())
    assert quarters[0].argmax() == corner
    # What speaks against a class is not shown as if it spoke for it.
    assert quarters[1].argmin() == corner
    assert quarters[1][corner] < 0.5 * quarters[0][corner]


def test_the_model_stays_as_it_was():
    model = made("pan-full-r18")
    clips = clips_of(model)
    with torch.no_grad():
        before = model(clips)
    first = grad_cam(model, clips, index=0)
    assert all(value.grad is None for value in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        np.testing.assert_array_equal(model(clips).numpy(), before.numpy())
    with torch.inference_mode(False):
        again = grad_cam(model, clips, index=0)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    with pytest.raises(FlowlessError, match="class 3 of a model of 3"):
        grad_cam(model, clips, index=3)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_overlay_is_brightest_where_the_map_is():
    frames = np.full((2, 64, 96, 3), 90, np.uint8)
    maps = np.zeros((2, 4, 6), np.float32)
    maps[1, 3, 0] = 2
    painted = overlaid(frames, maps, reach=2).astype(int)
    assert len(np.unique(painted[0].reshape(-1, 3), axis=0)) == 1
    assert painted[0].max() < 90
    assert np.unravel_index(painted[1].sum(-1).argmax(), (64, 96))[0] >= 48
    assert painted[1, 56, 8].sum() > 2 * painted[1, 8, 88].sum()
    np.testing.assert_array_equal(painted[1, :24, 32:], painted[0, :24, 32:])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = made("pan-full-r18", height=64, width=64)
    path = tmp_path_factory.mktemp("model") / "pan full.safetensors"
    return save_checkpoint(path, model, model_name="pan-full-r18", recipe={}, spec=model.spec, labels=LABELS, metrics={})


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    coarse = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    write_video(path, (np.roll(coarse, 2 * index, axis=1) for index in range(24)), fps=20)
    return path


def test_the_page_shows_it_beside_the_cue(checkpoint, video, tmp_path, capsys):
    page = tmp_path / "page.html"

    def explained(*words: str) -> dict[str, Any]:
        assert main(["explain", str(checkpoint), str(video), "--out", str(page), "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    answer = explained()
    assert answer["grad_cam"]["label"] == answer["top"][0]["label"]
    asked = explained("--label", "<clap>")
    assert asked["grad_cam"]["label"] == "<clap>"
    assert [part["branch"] for part in asked["grad_cam"]["branches"]] == ["rgb", "pa"]
    assert np.array(asked["grad_cam"]["branches"][1]["maps"]).shape == (4, 4, 4)
    text = page.read_text(encoding="utf-8")
    assert text.count('alt="Grad-CAM of rgb, segment') == text.count('alt="Grad-CAM of pa, segment') == 4
    assert "branches.pa.backbone.layer3" in text
    assert "speak for <b>&lt;clap&gt;</b>" in text
    # The maps are the first view's of the checkpoint's own network.
    loaded = load_checkpoint(checkpoint)
    from flowless.pipeline.clip.preprocess import load_clip

    wanted = grad_cam(loaded.model, torch.from_numpy(load_clip(video, loaded.spec)[:1]), index=1)
    np.testing.assert_allclose(asked["grad_cam"]["branches"][0]["maps"], wanted[0].values[0], rtol=1e-3, atol=1e-6)


def test_a_label_that_is_none(checkpoint, video, tmp_path, capsys):
    assert main(["explain", str(checkpoint), str(video), "--label", "clap", "--out", str(tmp_path / "x.html")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "label is 'clap'" in said
    assert "'<clap>'" in said
    assert not list(tmp_path.iterdir())

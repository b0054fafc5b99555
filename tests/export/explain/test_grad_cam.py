"""Grad-CAM: the paper's formula in NumPy on the layers' tensors, and maps that are largest where the evidence is."""

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
SEGMENTS = 2
#: Model -> of each branch its name, and the layer that is weighted and its places, for frames of 128 x 160 and of 48 x 64; the last
#: stages of the latter have 2 x 2 and 3 x 4 places.
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


def varied(name: str, *, height: int = 128, width: int = 160, blocks: int = 2, **options: Any) -> Any:
    """Return a model with batch norm statistics of noise, so that all its channels are active, and a random classifier."""
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


def reference_maps(features: np.ndarray, gradients: np.ndarray, *, count: int, grid: tuple[int, int]) -> np.ndarray:
    """Compute Eq. 1 and 2 in float64, segment by segment, from a layer's output and its gradient."""
    rows, columns = grid
    maps = np.zeros((count, SEGMENTS, rows, columns))
    for clip in range(count):
        for segment in range(SEGMENTS):
            if features.ndim == 5:  # [B, C, N, h, w]
                pairs = [(features[clip, :, segment], gradients[clip, :, segment])]
            elif features.ndim == 3:  # [B, N h w, C]
                tokens = slice(segment * rows * columns, (segment + 1) * rows * columns)
                pairs = [tuple(part[clip, tokens].T.reshape(-1, rows, columns) for part in (features, gradients))]
            else:
                per_segment = len(features) // (count * SEGMENTS)
                first = (clip * SEGMENTS + segment) * per_segment
                pairs = [(features[place], gradients[place]) for place in range(first, first + per_segment)]
            for feature, gradient in pairs:
                for channel in range(len(feature)):
                    alpha = gradient[channel].sum() / (rows * columns)
                    maps[clip, segment] += alpha * feature[channel]
    return np.maximum(maps, 0)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_maps_follow_the_paper(name, small):
    # BN-Inception is large: one module a stage, and one clip.
    blocks, count = (1, 1) if name.startswith("disentangling") else (2, 2)
    model = varied(name, height=48, width=64, blocks=blocks) if small else varied(name, blocks=blocks)
    clips = clips_of(model, count=count)
    found = grad_cam(model, clips, index=2)
    kept: dict[str, torch.Tensor] = {}

    def keep(layer: str) -> Any:
        def hook(_: Any, __: Any, out: torch.Tensor) -> None:
            out.retain_grad()
            kept[layer] = out

        return model.get_submodule(layer).register_forward_hook(hook)

    expected = [(branch, *((below, grid) if small else (last, wide))) for branch, last, wide, below, grid in LAYERS[name]]
    hooks = [keep(layer) for _, layer, _ in expected]
    # Gradients through the whole network.
    model(clips)[:, 2].sum().backward()
    for hook in hooks:
        hook.remove()
    assert [(maps.branch, maps.layer) for maps in found] == [(branch, layer) for branch, layer, _ in expected]
    for maps, (_, layer, grid) in zip(found, expected, strict=True):
        features, gradient = kept[layer].detach().double().numpy(), kept[layer].grad
        assert gradient is not None
        assert maps.values.shape == (count, SEGMENTS, *grid)
        reference = reference_maps(features, gradient.double().numpy(), count=count, grid=grid)
        assert reference.max() > 0
        np.testing.assert_allclose(maps.values, reference, rtol=1e-3, atol=1e-4 * reference.max())


def test_late_pooling_adds_the_maps_of_a_segment():
    model = varied("disentangling-bninception", blocks=1, branches="appearance", appearance_pooling="late")
    (appearance,) = grad_cam(model, clips_of(model, count=1), index=0)
    assert appearance.values.shape == (1, SEGMENTS, 4, 5)
    assert appearance.values.max() > 0


def test_tsn_by_hand_without_gradients():
    """TSN's score is the mean over segments and places of the products of classifier and features: Grad-CAM is those products."""
    model = varied("tsn-r18")
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
def test_the_map_of_a_class_is_where_its_evidence_is(name, corner):
    """A flickering patch in one corner, and a classifier for what the patch adds to the features."""
    model = varied(name, height=128, width=128, blocks=1)
    clip = torch.full((1, *model.spec.shape), 110, dtype=torch.uint8)
    empty = clip.clone()
    rows, columns = (slice(80, 128) if corner > 1 else slice(0, 48)), (slice(80, 128) if corner % 2 else slice(0, 48))
    patch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, *model.spec.shape[:2], 6, 6, 3), dtype=np.uint8))
    clip[:, :, :, rows, columns] = patch.repeat_interleave(8, 3).repeat_interleave(8, 4)
    features: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    with torch.no_grad():
        model(clip)
        model(empty)
    hook.remove()
    added, background = (features[0] - features[1]).mean((0, 1)), features[1].mean((0, 1))
    # The background alone neither raises nor lowers the score.
    model.head.pred.weight.data[1] = added - (added @ background) / (background @ background) * background
    model.head.pred.weight.data[2] = -model.head.pred.weight.data[1]
    quarters = []
    for index in (1, 2):
        values = grad_cam(model, clip, index=index)[0].values.sum((0, 1))
        assert values.shape == (4, 4)
        quarters.append(values.reshape(2, 2, 2, 2).sum((1, 3)).ravel())
    assert quarters[0].argmax() == corner
    # What lowers the score is not shown as if it raised it.
    assert quarters[1][corner] == quarters[1].min()
    assert quarters[1][corner] < 0.5 * quarters[0][corner]


def test_the_model_is_unchanged():
    model = varied("pan-full-r18")
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
    model = varied("pan-full-r18", height=64, width=64)
    path = tmp_path_factory.mktemp("model") / "pan full.safetensors"
    return save_checkpoint(path, model, model_name="pan-full-r18", recipe={}, spec=model.spec, labels=LABELS, metrics={})


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    coarse = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    write_video(path, (np.roll(coarse, 2 * index, axis=1) for index in range(24)), fps=20)
    return path


def test_the_page_shows_grad_cam(checkpoint, video, tmp_path, capsys):
    page = tmp_path / "page.html"

    def explained(*args: str) -> dict[str, Any]:
        assert main(["explain", str(checkpoint), str(video), "--out", str(page), "--json", *args]) == 0
        return json.loads(capsys.readouterr().out)

    predicted = explained()
    assert predicted["grad_cam"]["label"] == predicted["top"][0]["label"]
    chosen = explained("--label", "<clap>")
    assert chosen["grad_cam"]["label"] == "<clap>"
    assert [part["branch"] for part in chosen["grad_cam"]["branches"]] == ["rgb", "pa"]
    assert np.array(chosen["grad_cam"]["branches"][1]["maps"]).shape == (SEGMENTS, 4, 4)
    text = page.read_text(encoding="utf-8")
    assert text.count('alt="Grad-CAM of rgb, segment') == text.count('alt="Grad-CAM of pa, segment') == SEGMENTS
    assert "branches.pa.backbone.layer3" in text
    assert "raise the score of <b>&lt;clap&gt;</b>" in text
    # The maps are those of the first view.
    loaded = load_checkpoint(checkpoint)
    from flowless.pipeline.clip.preprocess import load_clip

    expected = grad_cam(loaded.model, torch.from_numpy(load_clip(video, loaded.spec)[:1]), index=1)
    np.testing.assert_allclose(chosen["grad_cam"]["branches"][0]["maps"], expected[0].values[0], rtol=1e-3, atol=1e-6)


def test_an_unknown_label_is_refused(checkpoint, video, tmp_path, capsys):
    assert main(["explain", str(checkpoint), str(video), "--label", "clap", "--out", str(tmp_path / "x.html")]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "label is 'clap'" in message
    assert "'<clap>'" in message
    assert not list(tmp_path.iterdir())

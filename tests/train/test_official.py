"""Official checkpoints: recorded answers of the official code, and the code itself where FLOWLESS_OFFICIAL_PAN names a clone."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import official_recipe
import pytest
import torch

from flowless.cli import main
from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import load_checkpoint, load_official
from flowless.train.checkpoints.official import OFFICIAL_MODELS, OfficialFrames
from flowless.train.models import MotionRecognizer

#: Largest difference of a logit in FP32 (the logits are a few units).
TOLERANCE = 1e-4
DOCUMENT = json.loads(official_recipe.RECORDED.read_text(encoding="utf-8"))
CASES = {f"{case['model']}-{case['base']}": case for case in DOCUMENT["cases"]}


def write(path: Path, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    """Write what the official code saves: from DataParallel, with the optimiser's state."""
    state = {f"module.{name}": value for name, value in weights.items()}
    optimizer = {
        "state": {0: {"momentum_buffer": torch.zeros(2)}},
        "param_groups": [{"name": "first_conv_weight", "lr": 0.01, "params": [0]}],
    }
    document = {"epoch": 80, "arch": "resnet18", "state_dict": state, "optimizer": optimizer, "best_prec1": 48.0}
    torch.save(document | changes, path)
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return official_recipe.weights(CASES["pan-lite-resnet18"]["shapes"])


@pytest.fixture
def file(tmp_path, weights) -> Path:
    return write(tmp_path / "ckpt.pth.tar", weights)


@pytest.mark.parametrize("case", CASES)
def test_recorded_logits(tmp_path, case):
    recorded = CASES[case]
    path = write(tmp_path / "ckpt.best.pth.tar", official_recipe.weights(recorded["shapes"]))
    module, spec = load_official(path, model=recorded["model"])
    _, frames = official_recipe.MODALITIES[recorded["model"]]
    assert spec == ClipSpec(frames_per_segment=frames)
    assert not module.training
    pixels = official_recipe.clip(frames)
    wanted = torch.tensor(recorded["logits"])
    assert wanted.abs().max() > 1
    with torch.inference_mode():
        assert (module(official_recipe.official_frames(pixels)) - wanted).abs().max() <= TOLERANCE
        # The recogniser inside takes the pixels themselves, and other sizes than the 224 x 224 that it was made for.
        assert (module.recognizer(torch.from_numpy(pixels)) - wanted).abs().max() <= TOLERANCE  # type: ignore[operator]


def test_recorded_motion_of_still_and_moving_frames(file, weights):
    """The official eps lies inside the norm: stillness is sqrt(8) * 1e-6 there, which logits cannot show."""
    module, _ = load_official(file, model="pan-lite")
    assert isinstance(module, OfficialFrames)
    assert isinstance(module.recognizer, MotionRecognizer)
    shapes = {name: list(value.shape) for name, value in weights.items() if name.startswith("PA.")}
    made = official_recipe.weights(shapes)
    with torch.inference_mode():
        module.recognizer.persistence.weight.copy_(made["PA.shallow_conv.weight"])  # type: ignore[union-attr, operator]
        frames = official_recipe.official_frames(official_recipe.clip(4, height=12, width=9)[1:, :2])
        maps = module.recognizer.persistence.motion(frames)[0].numpy()
    wanted = np.array(DOCUMENT["maps"])
    np.testing.assert_allclose(wanted[0], np.sqrt(8) * 1e-6, rtol=1e-4)
    np.testing.assert_allclose(maps[0], wanted[0], rtol=1e-4)
    np.testing.assert_allclose(maps[1], wanted[1], atol=5e-6)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_other_containers(tmp_path, weights, legacy, prefix):
    path = tmp_path / "ckpt.pth.tar"
    state = {prefix + name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    module, _ = load_official(path, model="pan-lite")
    torch.testing.assert_close(module.state_dict()["recognizer.backbone.bn1.weight"], weights["base_model.bn1.weight"])


def test_segments_and_classes_are_in_the_weights(tmp_path):
    shapes = dict(CASES["pan-full-rgb-resnet18"]["shapes"])
    shapes |= {"base_model.fc.TES.0.weight": [60, 15], "base_model.fc.TES.2.weight": [15, 60]}
    shapes |= {"base_model.fc.pred.weight": [27, 512], "base_model.fc.pred.bias": [27]}
    module, spec = load_official(write(tmp_path / "ckpt.pth.tar", official_recipe.weights(shapes)), model="pan-full-rgb")
    assert spec == ClipSpec(segments=16, frames_per_segment=1)
    with torch.inference_mode():
        assert module(torch.zeros(2, 16, 1, 3, 32, 32)).shape == (2, 27)


class Trap:
    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_nothing_is_unpickled(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "trap.pth.tar", weights, args=Trap())
    (tmp_path / "bare.pth.tar").write_bytes(pickle.dumps(Trap(), protocol=2))
    for name in ("trap.pth.tar", "bare.pth.tar"):
        with pytest.raises(FlowlessError, match=f"{name}: not a readable file"):
            load_official(tmp_path / name, model="pan-lite")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("model", [name for name in OFFICIAL_MODELS if name != "pan-lite"])
def test_the_wrong_model_is_named(file, model):
    with pytest.raises(FlowlessError, match=f"weights of pan-lite, not of {model}.*--model pan-lite"):
        load_official(file, model=model)
    with pytest.raises(FlowlessError, match="'pan-full'"):
        load_official(file, model="pan-full")


def changed(weights, *, drop=(), rename=None, add=None):
    rename = rename or {}
    kept = {rename.get(name, name): value for name, value in weights.items() if not any(part in name for part in drop)}
    return kept | (add or {})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"drop": ["layer2.0.bn1.running_mean"]}, r"1 missing: backbone\.layer2\.0\.bn1\.running_mean"),
        ({"add": {"base_model.extra": torch.zeros(1)}}, r"1 unknown: base_model\.extra"),
        ({"add": {"base_model.bn1.weight": torch.zeros(7)}}, r"1 other shapes: base_model\.bn1\.weight \[7\] instead of \[64\]"),
        ({"add": {"base_model.fc.TES.0.weight": torch.zeros(20, 5)}}, "segments is 6"),
        ({"drop": ["fc.TES", "fc.pred"], "add": {"new_fc.weight": torch.zeros(5, 512)}}, "without VAP"),
        ({"drop": ["PA."]}, "6 channels and it has no PA filters"),
        ({"drop": ["layer3.1"]}, r"2 \+ 2 \+ 1 \+ 2 blocks of 2"),
        ({"drop": ["base_model.conv1"]}, r"no base_model\.conv1\.weight"),
        ({"rename": {f"base_model.layer1.{n}.conv1.net.weight": f"base_model.layer1.{n}.conv1.weight" for n in (0, 1)}}, "temporal shift"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, weights, change, told):
    path = write(tmp_path / "other.pth.tar", changed(weights, **change))
    with pytest.raises(FlowlessError, match=rf"{told}"):
        load_official(path, model="pan-lite")


def test_other_files_are_refused_by_name(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.pth")
    (tmp_path / "text.pth.tar").write_text("hello")
    for name in ("list.pth", "numbers.pth", "text.pth.tar", "missing.pth.tar"):
        with pytest.raises(FlowlessError, match=name):
            load_official(tmp_path / name, model="pan-lite")


def test_frames_of_another_shape_are_refused(file):
    module, _ = load_official(file, model="pan-lite")
    with pytest.raises(FlowlessError, match=r"uint8 \[1, 8, 4, 3, 32, 32\].*\[B, 8, 4, 3, H, W\]"):
        module(torch.zeros(1, 8, 4, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(FlowlessError, match=r"float32 \[1, 8, 4, 32, 32, 3\]"):
        module(torch.zeros(1, 8, 4, 32, 32, 3))


def test_the_command(tmp_path, file, capsys):
    names = tmp_path / "labels.txt"
    names.write_text("pushing\npulling\n\nlifting\ndropping\nnothing\n", encoding="utf-8")
    out = tmp_path / "lite.safetensors"
    words = ["import", str(file), "--model", "pan-lite", "--out", str(out), "--labels", str(names), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "pan-lite-r18"
    loaded = load_checkpoint(out)
    assert loaded.labels == ("pushing", "pulling", "lifting", "dropping", "nothing")
    assert loaded.metrics == told["metrics"] == {"epoch": 80, "best_top1": 0.48}
    assert loaded.model.persistence.eps_inside  # type: ignore[union-attr]
    wanted = torch.tensor(CASES["pan-lite-resnet18"]["logits"])
    with torch.inference_mode():
        assert (loaded.model(torch.from_numpy(official_recipe.clip(4))) - wanted).abs().max() <= TOLERANCE


def test_the_command_numbers_classes_without_names(tmp_path, file, capsys):
    assert main(["import", str(file), "--model", "pan-lite", "--out", str(tmp_path / "a.safetensors")]) == 0
    assert "pan-lite-r18" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "a.safetensors").labels == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("text", "told"), [("a\nb\n", "2 labels; the checkpoint has 5"), ("a\nb\nc\nd\na\n", "'a' more than once"), (None, "not a readable")]
)
def test_the_command_refuses_labels_that_do_not_fit(tmp_path, file, capsys, text, told):
    names = tmp_path / "labels.txt"
    if text is not None:
        names.write_text(text)
    out = tmp_path / "a.safetensors"
    assert main(["import", str(file), "--model", "pan-lite", "--out", str(out), "--labels", str(names)]) == 1
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_the_command_refuses_another_ending(tmp_path, file, capsys):
    assert main(["import", str(file), "--model", "pan-lite", "--out", str(tmp_path / "a.pth")]) == 1
    assert "a.safetensors" in capsys.readouterr().err


@pytest.fixture(scope="module")
def clone() -> Path:
    place = os.environ.get("FLOWLESS_OFFICIAL_PAN")
    if not place:
        pytest.skip("FLOWLESS_OFFICIAL_PAN does not name a clone of the official PAN code")
    return Path(place)


def test_the_recording_is_what_the_code_answers(clone):
    found = official_recipe.record(clone)
    for ours, theirs in zip(DOCUMENT["cases"], found["cases"], strict=True):
        assert ours["shapes"] == theirs["shapes"]
        np.testing.assert_allclose(ours["logits"], theirs["logits"], atol=TOLERANCE)
    np.testing.assert_allclose(DOCUMENT["maps"], found["maps"], atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", OFFICIAL_MODELS)
@pytest.mark.parametrize("base", ["resnet34", "resnet50", "resnet101"])
def test_every_depth_against_the_code(tmp_path, clone, model, base):
    from official_pan import load_official as load_code

    network = official_recipe.build(load_code(clone), model, base)
    made = official_recipe.weights({name: list(value.shape) for name, value in network.state_dict().items()})
    network.load_state_dict(made)
    module, _ = load_official(write(tmp_path / "ckpt.pth.tar", made), model=model)
    frames = official_recipe.official_frames(official_recipe.clip(official_recipe.MODALITIES[model][1]))
    with torch.inference_mode():
        assert (module(frames) - official_recipe.answer(network, model)).abs().max() <= TOLERANCE

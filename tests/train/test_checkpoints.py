"""Checkpoints: round trip, and files that are refused."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.models import build_model

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=40)
LABELS = ("links", "rechts", "größer")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("pan-lite-r18", classes=3, spec=SPEC, width=0.25, dropout=0.2)


@pytest.fixture
def file(tmp_path, model):
    return save_checkpoint(
        tmp_path / "best.safetensors",
        model,
        model_name="pan-lite-r18",
        recipe={"lr": 0.1, "steps": [1, 2]},
        spec=SPEC,
        labels=LABELS,
        metrics={"epoch": 3, "val_top1": 0.5},
    )


def test_round_trip(file, model):
    loaded = load_checkpoint(file)
    assert (loaded.name, loaded.spec, loaded.labels) == ("pan-lite-r18", SPEC, LABELS)
    assert loaded.recipe == {"lr": 0.1, "steps": [1, 2]}
    assert loaded.metrics == {"epoch": 3, "val_top1": 0.5}
    assert loaded.versions["torch"] == torch.__version__.partition("+")[0]
    assert not loaded.model.training
    clip = torch.randint(0, 256, (2, *SPEC.shape), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(clip), model.eval()(clip), rtol=0, atol=0)


def test_header_is_readable_without_flowless(file):
    with safe_open(file, framework="pt") as stream:
        document = json.loads(stream.metadata()["flowless"])
    assert document["labels"] == list(LABELS)
    assert document["spec"]["segments"] == 4


def test_channels_last_weights_are_stored_unchanged(tmp_path, model):
    wide = build_model("tsn-r18", classes=3, spec=SPEC, width=0.25).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = save_checkpoint(tmp_path / "a.safetensors", wide, model_name="tsn-r18", recipe={}, spec=SPEC, labels=LABELS, metrics={})
    for name, value in load_checkpoint(path).model.state_dict().items():
        torch.testing.assert_close(value, wide.state_dict()[name], rtol=0, atol=0)


class Trap:
    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("trap.safetensors", "trap.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(FlowlessError, match=f"{name}: not a checkpoint of flowless"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def test_other_files_are_refused(tmp_path, file):
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-1000])
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    for name in ("empty.safetensors", "text.safetensors", "cut.safetensors", "foreign.safetensors", "missing.safetensors"):
        with pytest.raises(FlowlessError, match=name):
            load_checkpoint(tmp_path / name)
    with pytest.raises(FlowlessError, match=r"best\.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": ["one"]}, "1 labels for 3 classes"),
        ({"model": "tsn-r18"}, "do not fit"),
        ({"model": "x3d"}, "x3d"),
        ({"spec": {"segments": 4}}, "missing field"),
        ({"config": {"classes": 3, "width": 0.5}}, "do not fit"),
        ({"config": {"classes": 3, "speed": 2}}, "do not fit"),
        ({"version": 99}, "version 99"),
        ({"metrics": None, "recipe": None, "versions": None, "labels": None}, "do not fit"),
    ],
)
def test_inconsistent_contents_are_refused(tmp_path, file, change, named):
    with safe_open(file, framework="pt") as stream:
        document = json.loads(stream.metadata()["flowless"]) | change
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "changed.safetensors", metadata={"flowless": json.dumps(document)})
    with pytest.raises(FlowlessError, match=named):
        load_checkpoint(tmp_path / "changed.safetensors")


def test_a_full_disk_leaves_the_old_checkpoint(file, model, monkeypatch):
    before = file.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(FlowlessError, match=r"best\.safetensors: the disk is full"):
        save_checkpoint(file, model, model_name="pan-lite-r18", recipe={}, spec=SPEC, labels=LABELS, metrics={})
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]

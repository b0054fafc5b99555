"""The initial weights of a training: heads, ImageNet weights and their normalisation, a checkpoint; and partial BN with each of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import IMAGENET_MEAN, ClipSpec
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.checkpoints.transfer import transfer_weights
from flowless.train.loop.fit import fit, initial_spec
from flowless.train.loop.optimizer import freeze_batch_norm, norms_to_freeze
from flowless.train.loop.training_module import TrainingModule
from flowless.train.models import build_model
from flowless.train.models.backbones.timm_backbones import timm_name
from flowless.train.models.layers.heads import init_heads
from flowless.train.recipes import find_recipe

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=32)
LABELS = ("a", "b", "c")
FIELDS = {"segments": 4, "frames_per_segment": 2, "size": 32, "short_side": 32, "epochs": 1, "batch_size": 8, "threads": 1, "blocks": 1}


def small(name="pan-lite-r18/moving-shapes", **changes):
    return find_recipe(name, **(FIELDS | {"accelerator": "cpu"} | changes))


@pytest.mark.parametrize("name", ["tsn-r18", "pan-full-r18", "stm-r18", "disentangling-bninception"])
def test_heads_are_initialised_as_in_the_official_code(name):
    torch.manual_seed(0)
    model = build_model(name, classes=400, spec=SPEC, width=0.25, blocks=1)
    init_heads(model.heads, std=0.001)
    linear = [layer for head in model.heads for layer in head.modules() if isinstance(layer, nn.Linear)]
    assert len(linear) == {"tsn-r18": 1, "pan-full-r18": 6, "stm-r18": 1, "disentangling-bninception": 3}[name]
    for layer in linear:
        assert layer.weight.std().item() == pytest.approx(0.001, rel=0.35 if layer.weight.numel() < 100 else 0.03)
        assert layer.bias is None or not layer.bias.any()


def test_vap_starts_with_equal_timescale_weights():
    torch.manual_seed(0)
    model = build_model("pan-lite-r18", classes=5, spec=replace(SPEC, segments=8), width=0.25, blocks=1)
    features = 3 * torch.rand(4, 8, 128)
    (head,) = model.heads
    before = head.timescale_weights(features)  # type: ignore[operator]
    init_heads(model.heads, std=0.001)
    after = head.timescale_weights(features)  # type: ignore[operator]
    assert (before - 1 / 7).abs().max() > 0.02
    assert (after - 1 / 7).abs().max() < 1e-4


def test_head_std_of_the_recipes():
    for name in ("pan-lite-r50/something-v1", "stm-r50/kinetics400", "da-tsm-r50/ucf101", "tsn-r18/custom"):
        assert find_recipe(name).head_std == 0.001
    assert find_recipe("pan-lite-r18/moving-shapes").head_std == 0


def test_imagenet_weights_are_torchvisions_first_unless_others_are_named():
    assert timm_name("resnet50", True, default_tag="tv_in1k") == "resnet50.tv_in1k"
    assert timm_name("resnet50", "a1_in1k", default_tag="tv_in1k") == "resnet50.a1_in1k"
    assert timm_name("resnet50", False, default_tag="tv_in1k") == "resnet50"
    with pytest.raises(FlowlessError, match="weights is 'a1'; for resnet50 timm has a1_in1k, "):
        build_model("tsn-r50", classes=5, spec=SPEC, pretrained="a1")


@pytest.mark.parametrize("name", ["tsn-r18", "tsn-r34", "pan-lite-r50", "tsm-r101", "da-vit-b"])
def test_timm_loads_the_weights_of_the_papers(name, monkeypatch):
    asked = []

    def offline(architecture, **options):
        asked.append((architecture, options["pretrained"]))
        raise OSError("no network")

    monkeypatch.setattr("flowless.train.models.backbones.timm_backbones.timm.create_model", offline)
    with pytest.raises(FlowlessError, match="could not be fetched"):
        build_model(name, classes=5, spec=SPEC, pretrained=True)
    wanted = {"tsn-r18": "resnet18", "tsn-r34": "resnet34", "pan-lite-r50": "resnet50", "tsm-r101": "resnet101"}
    assert asked == [(f"{wanted[name]}.tv_in1k" if name in wanted else "vit_base_patch16_224.augreg_in21k", True)]


def test_pixels_are_normalised_as_for_the_pretrained_weights():
    assert initial_spec(find_recipe("da-vit-b/custom")).mean == (0.5, 0.5, 0.5)
    assert initial_spec(find_recipe("da-vit-b/custom")).std == (0.5, 0.5, 0.5)
    assert initial_spec(find_recipe("da-vit-b/custom", pretrained=False, pretrained_path="vit.pth")).mean == (0.5, 0.5, 0.5)
    assert initial_spec(find_recipe("da-vit-b/custom", pretrained=False)).mean == IMAGENET_MEAN
    assert initial_spec(find_recipe("da-vit-b/custom", weights="orig_in21k")).mean == (0.5, 0.5, 0.5)
    assert initial_spec(find_recipe("tsn-r50/custom")).mean == pytest.approx(IMAGENET_MEAN)
    assert initial_spec(find_recipe("da-x3d-m/custom")).mean == IMAGENET_MEAN


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory, train_index):
    """A checkpoint of a trained da-tsm, with another normalisation of pixels."""
    folder = tmp_path_factory.mktemp("kinetics")
    result = fit(small("da-tsm-r18/moving-shapes"), index=train_index, out=folder / "run")
    source = load_checkpoint(result.last)
    spec = replace(source.spec, mean=(0.5, 0.4, 0.3))
    return save_checkpoint(
        folder / "k.safetensors", source.model, model_name=source.name, recipe=source.recipe, spec=spec, labels=source.labels, metrics={}
    )


def test_training_starts_from_a_checkpoint(tmp_path, kinetics, train_index, capsys):
    renamed = replace(train_index, labels=tuple(f"other {label}" for label in train_index.labels))
    result = fit(small("da-tsm-r18/moving-shapes", start_from=str(kinetics), lr=1e-12), index=renamed, out=tmp_path / "run")
    before, after = load_checkpoint(kinetics), load_checkpoint(result.last)
    assert after.spec.mean == (0.5, 0.4, 0.3)
    assert json.loads((result.folder / "run.json").read_text())["recipe"]["start_from"] == str(kinetics)
    old, new = before.model.state_dict(), after.model.state_dict()
    assert not torch.equal(old.pop("head.pred.weight"), new.pop("head.pred.weight"))
    assert torch.allclose(old["projection.describe.weight"], new["projection.describe.weight"], atol=1e-6)
    weights = [name for name in old if name.endswith("weight")]
    assert max((old[name] - new[name]).abs().max().item() for name in weights) < 1e-6
    printed = capsys.readouterr().err
    assert "da-tsm-r18" in printed
    assert "new classifier, because the labels differ: head.pred.weight, head.pred.bias" in printed


def test_with_the_same_labels_the_classifier_is_kept(kinetics, train_index):
    source = load_checkpoint(kinetics)
    model = build_model(source.name, spec=source.spec, **source.model.config)
    start = transfer_weights(model, source, path=kinetics, labels=source.labels)
    assert (start.classifier, start.new, start.other_shape, start.unused) == ((), (), (), ())
    assert all(torch.equal(value, source.model.state_dict()[name]) for name, value in model.state_dict().items())


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    def make(name, *, width=0.25, **changes):
        return build_model(name, classes=3, spec=replace(SPEC, **changes), width=width, blocks=1)

    def transfer(model, name, **changes):
        other = make(name, **changes)
        about = {"model_name": name, "recipe": {}, "spec": other.spec, "labels": LABELS, "metrics": {}}
        source = load_checkpoint(save_checkpoint(tmp_path / "given.safetensors", other, **about))
        return transfer_weights(model, source, path="given.safetensors", labels=LABELS)

    lite = make("pan-lite-r18")
    assert transfer(lite, "pan-lite-r18", frames_per_segment=3).other_shape == ("backbone.conv1.weight",)
    new = {"head.TES.0.weight", "head.TES.2.weight", "persistence.weight", "persistence.bias"}
    assert set(transfer(lite, "tsm-r18").new) == new
    assert "persistence.weight" in transfer(make("tsm-r18"), "pan-lite-r18").unused
    with pytest.raises(FlowlessError, match=r"given\.safetensors: .* provides only .* of the .* tensors of the model to be trained"):
        transfer(make("stm-r18", width=0.5), "disentangling-bninception")


def test_a_missing_checkpoint_leaves_no_folder(tmp_path, train_index):
    with pytest.raises(FlowlessError, match="no such checkpoint"):
        fit(small(start_from=str(tmp_path / "none.safetensors")), index=train_index, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_source_of_weights(tmp_path, kinetics, train_index):
    whole = fit(small("da-tsm-r18/moving-shapes", start_from=str(kinetics), epochs=2), index=train_index, out=tmp_path / "whole")
    assert load_checkpoint(whole.last).spec.mean == (0.5, 0.4, 0.3)
    again = fit(
        small("da-tsm-r18/moving-shapes", start_from="moved away.safetensors", epochs=2), index=train_index, out=whole.folder, resume=True
    )
    assert load_checkpoint(again.last).spec.mean == (0.5, 0.4, 0.3)


def test_partial_bn_freezes_norms_with_statistics(kinetics):
    fresh = build_model("da-tsm-r18", classes=3, spec=SPEC, width=0.25, blocks=1)
    assert norms_to_freeze(fresh) == []
    # With ImageNet weights only the backbone has statistics: PWTP's norm stays trainable.
    for module in fresh.get_submodule("backbone").modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
    frozen = norms_to_freeze(fresh)
    assert frozen
    assert all(name.startswith("backbone.") for name in frozen)
    freeze_batch_norm(fresh.train(), frozen)
    (norm,) = (module for module in fresh.get_submodule("projection").modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.training
    assert norm.weight.requires_grad
    # In a checkpoint PWTP's norm has statistics too, so all norms but the first freeze.
    source = load_checkpoint(kinetics).model
    assert len(norms_to_freeze(source)) == len(frozen) + 1


def test_partial_bn_in_training(tmp_path, kinetics, train_index):
    recipe = small("da-tsm-r18/moving-shapes", start_from=str(kinetics), epochs=2, partial_bn=True)
    before = load_checkpoint(kinetics).model.state_dict()
    result = fit(recipe, index=train_index, out=tmp_path / "run")
    after = load_checkpoint(result.last).model.state_dict()
    frozen = [f"{name}.running_mean" for name in norms_to_freeze(load_checkpoint(kinetics).model)]
    assert all(np.array_equal(before[name], after[name]) for name in frozen)
    moved = [name for name in before if name.endswith("running_mean") and name not in frozen]
    assert len(moved) == 1
    assert not np.array_equal(before[moved[0]], after[moved[0]])


def test_a_run_without_a_state_resumes_from_its_initial_weights(tmp_path, kinetics, train_index):
    recipe = small("da-tsm-r18/moving-shapes", start_from=str(kinetics))
    whole = fit(recipe, index=train_index, out=tmp_path / "whole")
    for file in (whole.folder / "resume.ckpt", whole.last, whole.best):
        file.unlink()
    again = fit(replace(recipe, start_from=None), index=train_index, out=whole.folder, resume=True)
    assert again.rows[0]["train_loss"] == pytest.approx(whole.rows[0]["train_loss"], rel=1e-6)
    assert load_checkpoint(again.last).recipe["start_from"] == str(kinetics)


def test_resuming_with_other_labels_of_the_videos_is_refused(tmp_path, train_index):
    fit(small(epochs=1), index=train_index, out=tmp_path / "run")
    count = len(train_index.labels)
    moved = replace(train_index, videos=tuple(replace(video, label=(video.label + 1) % count) for video in train_index.videos))
    with pytest.raises(FlowlessError, match="was started on equally many, but other videos, or on the same with other labels"):
        fit(small(epochs=1), index=moved, out=tmp_path / "run", resume=True)


def test_a_checkpoint_of_nan_is_refused_before_anything_is_written(tmp_path, kinetics, train_index):
    source = load_checkpoint(kinetics)
    with torch.no_grad():
        source.model.get_parameter("backbone.conv1.weight")[0] = float("nan")
    about = {"model_name": source.name, "recipe": source.recipe, "spec": source.spec, "labels": source.labels, "metrics": {}}
    broken = save_checkpoint(tmp_path / "broken.safetensors", source.model, **about)
    with pytest.raises(
        FlowlessError, match=r"broken\.safetensors: 1 of its tensors hold NaN or infinity, the first backbone\.conv1\.weight"
    ):
        fit(small("da-tsm-r18/moving-shapes", start_from=str(broken)), index=train_index, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_sources_of_initial_weights_are_refused():
    with pytest.raises(FlowlessError, match=r"--from.*pretrained_path are both given"):
        find_recipe("tsn-r18/custom", start_from="a.safetensors", pretrained_path="b.pth")
    for changes in ({"start_from": "a.safetensors"}, {"pretrained": False}):
        with pytest.raises(FlowlessError, match="weights is 'a1_in1k', but training does not start from ImageNet weights"):
            find_recipe("tsn-r18/custom", weights="a1_in1k", **changes)


def test_partial_bn_freezes_the_same_norms_after_a_resume(tmp_path, kinetics, train_index, monkeypatch):
    """PWTP's norm has no statistics at the start, so it is not frozen; at the resume it has some."""
    source = load_checkpoint(kinetics)
    for norm in source.model.get_submodule("projection").modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
    about = {"model_name": source.name, "recipe": source.recipe, "spec": source.spec, "labels": source.labels, "metrics": {}}
    start = save_checkpoint(tmp_path / "start.safetensors", source.model, **about)
    recipe = small("da-tsm-r18/moving-shapes", start_from=str(start), epochs=2, partial_bn=True)
    whole = fit(recipe, index=train_index, out=tmp_path / "whole")

    class Killed(BaseException):
        pass

    real = TrainingModule.training_step

    def step(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise Killed
        return real(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", step)
    with pytest.raises(Killed):
        fit(recipe, index=train_index, out=tmp_path / "run")
    monkeypatch.undo()
    resumed = fit(recipe, index=train_index, out=tmp_path / "run", resume=True)
    wanted = load_checkpoint(whole.last).model.state_dict()
    for name, value in load_checkpoint(resumed.last).model.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)


def test_labels_in_another_order_are_refused(tmp_path, train_index):
    fit(small(epochs=1), index=train_index, out=tmp_path / "run")
    with pytest.raises(FlowlessError, match="the same labels in another order"):
        fit(small(epochs=1), index=replace(train_index, labels=train_index.labels[::-1]), out=tmp_path / "run", resume=True)


def test_starting_from_a_bundle_is_refused(tmp_path, train_index):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    with pytest.raises(FlowlessError, match="a bundle, which contains no checkpoint"):
        fit(small(start_from=str(tmp_path / "bundle")), index=train_index, out=tmp_path / "run")

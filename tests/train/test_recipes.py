"""Recipes: the papers' settings and schedules, and invalid values."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flowless.errors import FlowlessError
from flowless.pipeline.clip.protocols import protocol_spec
from flowless.train.models import FAMILIES, MODELS
from flowless.train.models.options import OPTIONS
from flowless.train.recipes import DATA_NAMES, Recipe, find_recipe


def test_official_schedule():
    recipe = find_recipe("pan-lite-r50/something-v1")
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (80, 64, 0.9, 1e-4)
    assert (recipe.dropout, recipe.clip_gradient, recipe.label_smoothing, recipe.partial_bn) == (0.5, 20, 0, False)
    rates = [recipe.rate_at(epoch) for epoch in (0, 29.99, 30, 59.99, 60, 79)]
    assert rates == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    assert not recipe.flip
    assert find_recipe("pan-lite-r50/kinetics400").flip
    rgb = find_recipe("tsn-r50/something-v1")
    assert (rgb.epochs, rgb.steps) == (50, (20, 40))


def test_schedules_of_pan():
    for model in ("pan-lite", "pan-pa", "pan-full", "pan-en"):
        recipe = find_recipe(f"{model}-r50/something-v1")
        assert (recipe.epochs, recipe.steps, recipe.frames_per_segment) == (80, (30, 60), 4)
        assert recipe.sampling == ("two-clip" if model == "pan-en" else "centre")
    rgb = find_recipe("pan-rgb-r101/jester")
    assert (rgb.epochs, rgb.steps, rgb.frames_per_segment) == (50, (20, 40), 1)
    assert vars(find_recipe("pan-pa-r50/jester", pa_depth=0).options)["pa_depth"] == 0
    with pytest.raises(FlowlessError, match="pa_depth is 9"):
        find_recipe("pan-pa-r50/jester", pa_depth=9)


@pytest.mark.parametrize("data", ["ucf101", "hmdb51"])
def test_small_sets_take_half_of_the_epochs(data):
    """PAN, section V-A: half of 80 (30, 60), and of the RGB branch's 50 (20, 40). The papers of STM and DA have other schedules there."""
    for model in ("pan-lite", "pan-pa", "pan-full", "pan-en"):
        recipe = find_recipe(f"{model}-r50/{data}")
        assert (recipe.epochs, recipe.steps) == (40, (15, 30))
    for model in ("pan-rgb", "tsm", "tsn"):
        recipe = find_recipe(f"{model}-r50/{data}")
        assert (recipe.epochs, recipe.steps, recipe.lr, recipe.frames_per_segment) == (25, (10, 20), 0.01, 1)
    stm = find_recipe(f"stm-r50/{data}")
    assert (stm.epochs, stm.steps, stm.lr) == (50, (15, 30, 45), 0.001)
    assert find_recipe(f"da-tsm-r50/{data}").epochs == 10


def test_schedule_of_disentangling():
    # Iterations of 256 clips: 939 per epoch of Kinetics, 37 of UCF101.
    recipe = find_recipe("disentangling-bninception/kinetics400")
    assert (recipe.batch_size, recipe.momentum, recipe.clip_gradient, recipe.partial_bn, recipe.layer_rates) == (256, 0.9, 20, False, False)
    assert [recipe.rate_at(epoch) for epoch in (0, 42.9, 43, 84.9, 85, 116)] == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    assert [epochs * 240_436 / 256 for epochs in (43, 85, 117)] == pytest.approx([40_000, 80_000, 110_000], rel=0.01)
    recipe = find_recipe("disentangling-bninception/ucf101")
    assert (recipe.rate_at(0), recipe.partial_bn, recipe.spec.shape[:2]) == (0.005, True, (3, 8))
    assert [epochs * 9537 / 256 for epochs in (*recipe.steps, recipe.epochs)] == pytest.approx([10_000, 16_000, 18_000], rel=0.01)
    with pytest.raises(FlowlessError, match=r"displacement_window is 17.*displacement_temperature is 0.*displacement_size is 100"):
        find_recipe("disentangling-bninception/ucf101", displacement_window=17, displacement_temperature=0, displacement_size=100)
    with pytest.raises(FlowlessError, match="appearance_pooling is 'x'; it must be one of gradual, late"):
        find_recipe("disentangling-bninception/ucf101", appearance_pooling="x")
    assert find_recipe("disentangling-bninception/ucf101", appearance_pooling="late").options.model_options["appearance_pooling"] == "late"


@pytest.mark.parametrize(
    ("name", "average", "test_views"),
    [
        ("pan-lite-r50/something-v1", "logits", "one-view"),
        ("pan-full-r18/jester", "logits", "one-view"),
        ("pan-lite-r50/kinetics400", "logits", "full-resolution"),
        ("pan-pa-r50/hmdb51", "logits", "full-resolution"),
        ("pan-en-r50/something-v2", "logits", "full-resolution"),
        ("stm-r50/something-v1", "softmax", "thirty-draw"),
        ("stm-r34/kinetics400", "softmax", "thirty-draw"),
        ("stm-r50/ucf101", "softmax", "thirty-draw"),
        ("stm-r50/custom", "softmax", None),
        ("da-tsm-r50/something-v1", "softmax", "six-view"),
        ("da-x3d-m/hmdb51", "softmax", "six-view"),
        ("da-x3d-xs/something-v1", "softmax", "three-crop-two-clip"),
        ("da-tsm-r50/kinetics400", "softmax", "thirty-consecutive"),
        ("da-vit-b/kinetics400", "softmax", "three-consecutive"),
        ("da-vit-b/something-v1", "softmax", "three-view"),
        ("da-tsm-r18/moving-shapes", "softmax", None),
        ("tsn-r50/kinetics400", "logits", None),
        ("tsm-r50/something-v1", "logits", None),
        ("disentangling-bninception/ucf101", "logits", None),
    ],
)
def test_test_protocols_of_the_papers(name, average, test_views):
    recipe = find_recipe(name)
    assert (recipe.average, recipe.spec.average, recipe.test_views) == (average, average, test_views)
    if test_views is not None:
        assert protocol_spec(recipe.spec, test_views).average == average


def test_dynamic_appearance_takes_consecutive_frames_of_kinetics():
    """Section 4 of its paper: consecutive frames on Kinetics, segments on the other data sets."""
    for name in (f"{model}/{data}" for model in MODELS for data in DATA_NAMES):
        recipe = find_recipe(name)
        dense = name.startswith("da-") and name.endswith("/kinetics400")
        assert recipe.training_sampling == ("consecutive" if dense else "segments"), name
        assert (recipe.training_rule, recipe.validation_rule) == (("consecutive", "consecutive") if dense else ("train", "centre"))
        if dense:
            assert recipe.sampling == "consecutive"
    dense = find_recipe("tsm-r50/kinetics400", training_sampling="dense")
    assert (dense.training_rule, dense.validation_rule) == ("dense", "one-dense")
    with pytest.raises(FlowlessError) as caught:
        find_recipe("tsm-r50/jester", training_sampling="train", sampling="train", average="mean", test_views="paper")
    for part in (
        "training_sampling is 'train'; it must be one of segments, dense, consecutive",
        "sampling is 'train'",
        "average is 'mean'",
    ):
        assert part in str(caught.value)
    assert "test_views is 'paper'; it must be None or one of one-view" in str(caught.value)


def test_rate_scales_with_the_batch():
    assert find_recipe("pan-lite-r50/something-v1", batch_size=256).rate_at(0) == pytest.approx(0.04)


def test_one_cycle():
    recipe = Recipe(schedule="one-cycle", lr=0.1, lr_batch=20, batch_size=20, epochs=10, warm_up=0.3)
    assert recipe.rate_at(0) == pytest.approx(0.004)
    assert recipe.rate_at(1.5) == pytest.approx(0.052)
    assert recipe.rate_at(3) == pytest.approx(0.1)
    assert recipe.rate_at(10) == pytest.approx(4e-7)
    assert recipe.rate_at(11) == pytest.approx(4e-7)
    rates = [recipe.rate_at(epoch / 10) for epoch in range(101)]
    assert rates.index(max(rates)) == 30


def test_every_model_has_a_recipe_for_every_data_set():
    assert {name.rpartition("-")[0] for name in MODELS} == set(FAMILIES) == set(OPTIONS)
    for name in (f"{model}/{data}" for model in MODELS for data in DATA_NAMES):
        recipe = find_recipe(name)
        assert recipe.name == name
        assert recipe.model == name.split("/")[0]
        if not recipe.model.startswith("da-"):
            assert recipe.spec.shape[0] == (3 if recipe.model.startswith("disentangling") else 8)


def test_dictionary_round_trip():
    recipe = find_recipe("pan-lite-r50/custom", flip=True, flip_labels={"left": "right"}, pretrained_path="weights.pth")
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(FlowlessError, match="speed"):
        Recipe.from_dict({"speed": 1})


def test_a_recipe_of_an_earlier_version_is_read():
    """It holds the options of every family, and heads had PyTorch's default initialisation."""
    others = {"stm_fixed": False, "stm_fusion": "sum", "joint": "mgda", "da_subspace": 1, "displacement_size": 112, "projection_rate": 1.0}
    document = find_recipe("pan-lite-r18/moving-shapes", pa_depth=2).to_dict()
    del document["head_std"], document["start_from"], document["weights"]
    read = Recipe.from_dict(document | others)
    assert read == find_recipe("pan-lite-r18/moving-shapes", pa_depth=2)
    assert Recipe.from_dict({"model": "tsn-r50"} | others).head_std == 0


def test_data_sets_that_share_settings():
    for alias, own in (("something-v2", "something-v1"), ("jester", "something-v1"), ("hmdb51", "ucf101")):
        for model in ("pan-lite-r50", "stm-r50", "da-tsm-r50", "disentangling-bninception"):
            assert replace(find_recipe(f"{model}/{alias}"), name="") == replace(find_recipe(f"{model}/{own}"), name="")


def test_options_of_another_family_are_refused():
    with pytest.raises(FlowlessError, match="tsn-r18: has no option pa_depth; it has none"):
        find_recipe("tsn-r18/tiny", pa_depth=2)
    with pytest.raises(FlowlessError, match=r"has no field speed\. See: flowless train tsn-r18/tiny --help"):
        find_recipe("tsn-r18/tiny", speed=2)
    with pytest.raises(FlowlessError, match="options are AppearanceOptions; tsn-r18 takes FamilyOptions"):
        replace(find_recipe("da-tsm-r18/tiny"), model="tsn-r18")
    with pytest.raises(FlowlessError, match=r"stm-r18: stm_placement is 'none'.*; stm_fixed is 3"):
        find_recipe("stm-r18/tiny", stm_placement="none", stm_fixed=3)


def help_of(recipe):
    command = [sys.executable, "-m", "flowless", "train", recipe, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "300"}).stdout


def test_help_shows_only_options_of_the_family():
    tsn, appearance = help_of("tsn-r18/tiny"), help_of("da-tsm-r18/tiny")
    for shown in ("--from", "--head-std", "--epochs", "--scales", "--weights"):
        assert shown in tsn
        assert shown in appearance
    for option in ("--joint-alpha", "--da-subspace", "--projection-rate"):
        assert option not in tsn
        assert option in appearance
    for never in ("--name", "--model", "--options", "--pa-depth", "options options"):
        assert never not in tsn + appearance
    assert "─ model options ─" in appearance


def test_an_unknown_recipe_is_refused():
    with pytest.raises(FlowlessError, match=r"'pan/jester'.*pan-lite-r50.*jester.*moving-shapes"):
        find_recipe("pan/jester")


def test_all_problems_in_one_error():
    with pytest.raises(FlowlessError) as caught:
        replace(Recipe(), epochs=0, lr=-1.0, dropout=1.0, scales=(2.0,), batch_size=10, accumulate=3)
    for part in ("epochs is 0", "lr is -1.0", "dropout is 1.0", "scales is (2.0,)", "accumulate is 3"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": ("a",)}, r"scales is \('a',\); it must be a tuple of numbers"),
        ({"steps": (1, 2.5)}, r"steps is \(1, 2.5\); it must be a tuple of whole numbers"),
        ({"flip_labels": {"left": 1}}, r"flip_labels is {'left': 1}; it must be a dictionary of text"),
        ({"test_views": ["dense"]}, r"test_views is \['dense'\]; it must be None or one of one-view"),
        ({"lr": True}, "lr is True; it must be a number"),
        ({"threads": "2", "epochs": "3"}, "epochs is '3'; it must be a whole number; threads is '2'; it must be None or a whole number"),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"accumulate": 0}, "accumulate is 0; it must be at least 1"),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_refused(fields, message):
    with pytest.raises(FlowlessError, match=message):
        find_recipe("tsn-r18/tiny", **fields)
    with pytest.raises(FlowlessError, match=message):
        replace(Recipe(), **fields)


def test_a_file_may_be_given_as_a_path():
    recipe = find_recipe("tsn-r18/tiny", start_from=Path("runs") / "best.safetensors")
    assert recipe.start_from == str(Path("runs") / "best.safetensors")


def test_help_imports_no_heavy_library():
    code = (
        "import sys; from flowless.train.commands.train import train\n"
        "for command in (lambda: train(['tsn-r18/tiny', '--help']), lambda: train(['--help'])):\n"
        "    try: command()\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'timm', 'safetensors', 'nvidia.dali', 'matplotlib', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--layer-rates" in done.stdout
    assert "pan-lite-r50" in done.stdout

"""`flowless explain --data`: gains of known predictions, features equal to the network's, a deterministic map."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.text import Text

from flowless.cli import main
from flowless.errors import FlowlessError
from flowless.export.explain.data_set_page import render
from flowless.export.explain.explain_command import class_table
from flowless.export.explain.explain_data_set import DataSetExplanation, DataSetOutputs, class_gains, run_data_set
from flowless.export.explain.introspection import ModelInfo, open_model
from flowless.export.explain.tsne_map import chance_share, place_in_plane, same_class_share, sample_evenly
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex, Refused
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.models import build_model

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=32)
SAME: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


def outputs_of(predicted: list[str], truth: list[str], *, names: tuple[str, ...]) -> DataSetOutputs:
    """Return the outputs of a model with known predictions."""
    scores = np.zeros((len(truth), len(names)), np.float32)
    scores[np.arange(len(truth)), [names.index(label) for label in predicted]] = 1
    return DataSetOutputs(
        model=ModelInfo(name=f"model of {names[0]}", path=Path(f"runs/{names[0]}.safetensors"), source="a test", spec=SPEC, labels=names),
        ids=tuple(f"{number}.mp4" for number in range(len(truth))),
        labels=np.array([names.index(label) for label in truth]),
        scores=scores,
        features=np.zeros((len(truth), 3), np.float32),
        timescale_weights={},
        bad_videos=(),
    )


def test_gains_by_class():
    truth = ["run", "run", "run", "run", "sit", "sit", "jump", "jump", "fall"]
    mine = outputs_of(["run", "run", "run", "sit", "sit", "sit", "sit", "sit", "fall"], truth, names=("run", "sit", "jump", "fall", "none"))
    # The other model's labels are in another order.
    theirs = outputs_of(
        ["run", "sit", "sit", "sit", "run", "sit", "jump", "sit", "fall"], truth, names=("fall", "jump", "none", "sit", "run")
    )
    rows = class_gains(mine, theirs)
    assert [(row.label, row.videos, row.accuracy, row.other, row.gain) for row in rows] == [
        ("sit", 2, 1.0, 0.5, 0.5),
        ("run", 4, 0.75, 0.25, 0.5),
        ("fall", 1, 1.0, 1.0, 0.0),
        ("jump", 2, 0.0, 0.5, -0.5),
    ]
    alone = class_gains(mine, None)
    assert [(row.label, row.accuracy, row.gain) for row in alone] == [
        ("fall", 1.0, None),
        ("sit", 1.0, None),
        ("run", 0.75, None),
        ("jump", 0.0, None),
    ]


def test_timescale_weights_are_means_over_the_videos_of_a_class():
    weights = np.array([[0.5, 0.25, 0.25], [0.7, 0.1, 0.2], [1, 0, 0]], np.float32)
    outputs = replace(outputs_of(["a", "a", "b"], ["a", "a", "b"], names=("a", "b")), timescale_weights={"pa": weights})
    found = outputs.timescales_by_class()["pa"]
    assert found["a"] == pytest.approx({"s = 1": 0.6, "s = 2, from 1": 0.175, "s = 2, from 2": 0.225})
    assert found["b"]["s = 1"] == 1


def test_a_sample_is_even_as_far_as_the_classes_allow():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 3, 40])
    chosen = sample_evenly(labels, most=45)
    assert np.bincount(labels[chosen]).tolist() == [14, 14, 3, 14]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert chosen.tolist() == sample_evenly(labels, most=45).tolist()
    assert chosen.tolist() != sample_evenly(labels, most=45, seed=1).tolist()
    assert sample_evenly(labels, most=500).tolist() == list(range(193))
    odd = np.bincount(labels[sample_evenly(labels, most=47)])
    assert odd.sum() == 47
    assert odd[[0, 1, 3]].min() >= 14


def groups(*, each: int = 20, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    middles = rng.normal(0, 5, (3, width))
    labels = np.repeat([0, 1, 2], each)
    return (middles[labels] + rng.normal(0, 1, (len(labels), width))).astype(np.float32), labels


def test_the_map_keeps_neighbours_and_is_deterministic():
    features, labels = groups()
    places = place_in_plane(features)
    assert places.shape == (60, 2)
    assert np.abs(places).max() == pytest.approx(1)
    assert same_class_share(places, labels) > 0.95
    np.testing.assert_array_equal(place_in_plane(features), places)


@pytest.mark.parametrize("features", [np.zeros((12, 80)), np.zeros((60, 80)), np.arange(10.0)[:, None]])
def test_degenerate_features_have_a_map(features):
    assert np.isfinite(place_in_plane(features)).all()


def test_share_of_neighbours_of_the_same_class():
    features, labels = groups()
    assert same_class_share(features, labels) == 1
    assert same_class_share(features, np.arange(60)) == 0
    # Two videos: each has one neighbour.
    assert same_class_share(features[:2], np.array([0, 0])) == 1
    # Twelve on a line: each has the ten nearest of the other eleven.
    line = np.arange(12.0)[:, None]
    expected = np.mean(
        [
            sum((other % 2) == (place % 2) for other in sorted(set(range(12)) - {place}, key=lambda o: (abs(o - place), o))[:10]) / 10
            for place in range(12)
        ]
    )
    assert same_class_share(line, np.arange(12) % 2) == pytest.approx(expected)
    # Random features: 3 classes of 20 videos have 19 of 59 others in common.
    random = [same_class_share(np.random.default_rng(seed).normal(size=(60, 8)), labels) for seed in range(40)]
    assert chance_share(labels) == pytest.approx(19 / 59)
    assert np.mean(random) == pytest.approx(19 / 59, abs=0.02)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, train_index: DatasetIndex) -> dict[str, Path]:
    """PAN-Full with two views, and TSN with its labels in another order."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, spec, labels in (
        ("pan-full-r18", replace(SPEC, sampling="two-clip"), train_index.labels),
        ("tsn-r18", replace(SPEC, frames_per_segment=1), train_index.labels[::-1]),
    ):
        torch.manual_seed(7)
        model = build_model(name, classes=len(labels), spec=spec, width=0.25, blocks=1)
        path = folder / f"{name}.safetensors"
        made[name] = save_checkpoint(path, model, model_name=name, recipe={}, spec=spec, labels=labels, metrics={})
    return made


def test_scores_features_and_weights_are_those_of_the_network(models, val_index):
    found = run_data_set(open_model(models["pan-full-r18"]), val_index, batch_size=3)
    loaded: Any = load_checkpoint(models["pan-full-r18"])
    assert found.ids == tuple(video.id for video in val_index.videos)
    assert [found.model.labels[label] for label in found.labels] == [val_index.labels[video.label] for video in val_index.videos]
    for place, video in enumerate(val_index.videos[:4]):
        clips = torch.from_numpy(load_clip(val_index.path_of(video), loaded.spec))
        assert len(clips) == 2
        with torch.inference_mode():
            scores = loaded.model(clips).mean(0)
            features = [net.features(net.normalise(net.as_frames(clips))) for net in loaded.model.networks]
            weights = loaded.model.branches["pa"].head.timescale_weights(features[1]).mean(0)
        np.testing.assert_allclose(found.scores[place], scores.numpy(), **SAME)
        np.testing.assert_allclose(found.features[place], torch.cat([one.mean((0, 1)) for one in features]).numpy(), **SAME)
        np.testing.assert_allclose(found.timescale_weights["pa"][place], weights.numpy(), **SAME)
    assert list(found.timescale_weights) == ["rgb", "pa"]


def test_a_bundle_has_the_outputs_of_its_checkpoint(checkpoint, exported, val_index):
    labels = open_model(checkpoint).info.labels
    index = replace(val_index, labels=labels, videos=tuple(replace(video, label=video.label % len(labels)) for video in val_index.videos))
    one, other = (run_data_set(open_model(model), index) for model in (checkpoint, exported))
    for part in ("features", "scores"):
        np.testing.assert_allclose(getattr(other, part), getattr(one, part), **SAME)
    np.testing.assert_allclose(other.timescale_weights[""], one.timescale_weights[""], **SAME)


def test_the_command_writes_a_page_and_lists_unreadable_videos(models, val_index, tmp_path, capsys):
    folder = Path(shutil.copytree(val_index.root, tmp_path / "videos"))
    bad = val_index.videos[3]
    (folder / bad.path).write_bytes(b"no video")
    index = replace(val_index, root=folder)
    index.save(tmp_path / "index.jsonl")
    page = tmp_path / "page.html"
    command = ["explain", str(models["pan-full-r18"]), "--data", str(tmp_path / "index.jsonl"), "--against", str(models["tsn-r18"])]
    assert main([*command, "--out", str(page), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    text = page.read_text(encoding="utf-8")
    assert [item["path"] for item in document["bad_videos"]] == [bad.path]
    assert bad.path in text
    assert document["videos"] == 11
    # Eleven classes: the twelfth's only video could not be read.
    assert len(document["per_class"]) == 11
    for row in document["per_class"]:
        assert row["gain"] == row["accuracy"] - row["other"]
    for place, side in enumerate(("accuracy", "other")):
        model = document["models"][place]
        assert model["top1"] == pytest.approx(np.average([row[side] for row in document["per_class"]]))
        points = model["map"]["points"]
        assert [point["id"] for point in points] == [video.id for video in val_index.videos if video is not bad]
        assert model["top1"] == pytest.approx(np.mean([point["label"] == point["predicted"] for point in points]))
    assert list(document["models"][0]["timescales"]) == ["rgb", "pa"]
    assert document["models"][1]["timescales"] == {}
    assert not re.findall(r"""\s(?:src|href)=["'](?!data:)""", text)
    assert text.count("<circle") == 22
    assert "All 11 videos" in text
    # Deterministic, to the last byte.
    assert main([*command, "--out", str(tmp_path / "again.html"), "--json"]) == 0
    assert {**json.loads(capsys.readouterr().out), "out": ""} == {**document, "out": ""}
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text
    # Fewer videos on the map; the classes stay as they were.
    assert main([*command, "--out", str(page), "--json", "--most", "10"]) == 0
    fewer = json.loads(capsys.readouterr().out)
    assert len(fewer["models"][0]["map"]["points"]) == 10
    assert fewer["per_class"] == document["per_class"]
    assert "10 of 11 videos" in page.read_text(encoding="utf-8")


def test_wrong_arguments_are_refused(models, val_index, train_index, tmp_path, capsys):
    index, model = tmp_path / "index.jsonl", str(models["tsn-r18"])
    val_index.save(index)
    names = tuple("other" if number == 0 else name for number, name in enumerate(val_index.labels))
    replace(val_index, labels=names).save(tmp_path / "strange.jsonl")
    replace(val_index, root=tmp_path / "nowhere").save(tmp_path / "gone.jsonl")
    before = sorted(tmp_path.iterdir())
    for args, message in (
        (["--data", str(index), "--out", str(tmp_path / "x.mp4")], "one of .html"),
        (["--data", str(index), "--out", str(index)], "suffix"),
        ([], "neither a video nor --data"),
        (["a.mp4", "--data", str(index)], "both a video, a.mp4"),
        (["a.mp4", "--against", model], "--data INDEX"),
        (["--data", str(index), "--label", "up"], "one video"),
        (["--data", str(index), "--most", "4", "--out", str(tmp_path / "x.html")], "at least 10"),
        (["--data", str(tmp_path / "strange.jsonl"), "--out", str(tmp_path / "x.html")], "'other'"),
        (["--data", str(tmp_path / "gone.jsonl"), "--out", str(tmp_path / "x.html")], "none of the 12 videos"),
        (["--data", str(index), "--against", str(tmp_path / "none"), "--out", str(tmp_path / "x.html")], "no such checkpoint"),
    ):
        assert main(["explain", model, *args]) == 1, args
        assert message in " ".join(capsys.readouterr().err.split()), args
    assert sorted(tmp_path.iterdir()) == before


def test_outputs_that_are_nan_are_refused(models, val_index, tmp_path):
    loaded = load_checkpoint(models["tsn-r18"])
    loaded.model.heads[0].get_parameter("pred.weight").data[0, 0] = float("nan")
    path = tmp_path / "broken.safetensors"
    save_checkpoint(path, loaded.model, model_name=loaded.name, recipe={}, spec=loaded.spec, labels=loaded.labels, metrics={})
    with pytest.raises(FlowlessError, match="12 of 12 videos have features or scores that are NaN or infinite"):
        run_data_set(open_model(path), val_index)


def test_models_of_one_name_are_headed_by_their_files():
    one = outputs_of(["a", "b"], ["a", "a"], names=("a", "b"))
    other = replace(one, model=replace(one.model, path=Path("runs/[new]/best.safetensors")))
    explanation = DataSetExplanation(
        data="index.jsonl", models=(one, other), classes=class_gains(one, other), sample=np.arange(2), maps=(), same_class=()
    )
    files = ["runs/a.safetensors", "runs/[new]/best.safetensors"]
    page = render(explanation)
    assert re.findall(r'<th class="n">(runs[^<]*), %</th>', page) == files
    assert f"{files[0]} compared with {files[1]}" in page
    shown = [Text.from_markup(str(column.header)).plain for column in class_table(explanation).columns]
    assert shown == ["class", "videos", "gain", *files]


def test_a_page_of_many_classes():
    names = tuple(f"<class {number:02}>" for number in range(50))
    truth = [name for name in names for _ in range(2)]
    mine = outputs_of(truth, truth, names=names)
    theirs = outputs_of([names[0] if place % 3 else label for place, label in enumerate(truth)], truth, names=names)
    sample = np.arange(60)
    explanation = DataSetExplanation(
        data="folder/some & all.jsonl",
        models=(mine, theirs),
        classes=class_gains(mine, theirs),
        sample=sample,
        maps=(np.zeros((60, 2)), np.ones((60, 2))),
        same_class=(0.5, 0.25),
        bad_videos=(Refused(path="<a>.mp4", reason="broken & gone"),),
    )
    page = render(explanation)
    assert "<class" not in page
    assert "<a>.mp4" not in page
    assert "10 more classes" in page
    # 40 rows, and all of them in the fold-out.
    assert len(re.findall(r'<td class="label">', page)) == 40 + 50
    circles = re.findall(r"<circle[^>]*>", page)
    assert len(circles) == 120
    colours = {colour for circle in circles for colour in re.findall(r"(?:fill|stroke)=\"(#[0-9a-f]{6})", circle)}
    assert len(colours - {"#b9c2c8"}) <= 18
    assert "60 of 100 videos" in page
    assert len(re.findall(r"stroke-width", page)) == sum(mine.scores[:60].argmax(1) != theirs.scores[:60].argmax(1))
    few = replace(explanation, maps=(), same_class=())
    assert "No map: it takes at least 10 videos" in render(few)
    assert few.to_dict()["models"][0]["map"] is None

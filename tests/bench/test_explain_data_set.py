"""`flowless explain --data`: gains counted on known answers, features that are the network's, a map that is the same every time."""

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

from flowless.cli import main
from flowless.errors import FlowlessError
from flowless.export.bundle_writer import export_bundle
from flowless.export.explain.data_set_page import render
from flowless.export.explain.data_set_scores import DataSetSeen, see_data_set
from flowless.export.explain.explain_data_set import DataSetExplanation, class_gains, timescales_by_class
from flowless.export.explain.feature_map import place_in_plane, same_class_share, sample_evenly
from flowless.export.explain.introspection import open_looker
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex, Refused
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.models import build_model

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=32)
SAME: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


def seen_of(answers: list[str], truth: list[str], *, names: tuple[str, ...], features: np.ndarray | None = None) -> DataSetSeen:
    """What a model says whose answers are known."""
    scores = np.zeros((len(truth), len(names)), np.float32)
    scores[np.arange(len(truth)), [names.index(answer) for answer in answers]] = 1
    return DataSetSeen(
        model=f"knows {names[0]}",
        source="by hand",
        spec=SPEC,
        names=names,
        ids=tuple(f"{number}.mp4" for number in range(len(truth))),
        labels=np.array([names.index(label) for label in truth]),
        scores=scores,
        features=np.zeros((len(truth), 3), np.float32) if features is None else features,
        timescale_weights={},
        bad_videos=(),
    )


def test_gains_are_counted_class_by_class():
    truth = ["run", "run", "run", "run", "sit", "sit", "jump", "jump", "fall"]
    mine = seen_of(["run", "run", "run", "sit", "sit", "sit", "sit", "sit", "fall"], truth, names=("run", "sit", "jump", "fall", "none"))
    # The other model's labels lie in another order.
    theirs = seen_of(["run", "sit", "sit", "sit", "run", "sit", "jump", "sit", "fall"], truth, names=("fall", "jump", "none", "sit", "run"))
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


def test_timescales_are_means_over_a_classs_videos():
    weights = np.array([[0.5, 0.25, 0.25], [0.7, 0.1, 0.2], [1, 0, 0]], np.float32)
    seen = replace(seen_of(["a", "a", "b"], ["a", "a", "b"], names=("a", "b")), timescale_weights={"pa": weights})
    found = timescales_by_class(seen)["pa"]
    assert found["a"] == pytest.approx({"s = 1": 0.6, "s = 2, from 1": 0.175, "s = 2, from 2": 0.225})
    assert found["b"]["s = 1"] == 1


def test_a_sample_is_as_even_as_the_classes_allow():
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


def test_the_map_keeps_neighbours_and_is_the_same_every_time():
    features, labels = groups()
    places = place_in_plane(features)
    assert places.shape == (60, 2)
    assert np.abs(places).max() == pytest.approx(1)
    assert same_class_share(places, labels) > 0.95
    np.testing.assert_array_equal(place_in_plane(features), places)


@pytest.mark.parametrize("features", [np.zeros((12, 80)), np.zeros((60, 80)), np.arange(10.0)[:, None]])
def test_features_without_a_pattern_have_a_map_too(features):
    assert np.isfinite(place_in_plane(features)).all()


def test_neighbours_of_ones_own_class():
    features, labels = groups()
    assert same_class_share(features, labels) == 1
    assert same_class_share(features, np.arange(60)) == 0
    # Two videos: each has the other one alone.
    assert same_class_share(features[:2], np.array([0, 0])) == 1
    # A line of twelve: its ends have the ten nearest of the other eleven.
    line = np.arange(12.0)[:, None]
    wanted = np.mean(
        [
            sum((other % 2) == (place % 2) for other in sorted(set(range(12)) - {place}, key=lambda o: (abs(o - place), o))[:10]) / 10
            for place in range(12)
        ]
    )
    assert same_class_share(line, np.arange(12) % 2) == pytest.approx(wanted)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, train_index: DatasetIndex) -> dict[str, Path]:
    """PAN-Full of two views a video, and TSN whose labels lie in another order."""
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


def test_scores_features_and_weights_are_the_networks(models, val_index, tmp_path):
    seen = see_data_set(open_looker(models["pan-full-r18"]), val_index, batch_size=3)
    loaded: Any = load_checkpoint(models["pan-full-r18"])
    assert seen.ids == tuple(video.id for video in val_index.videos)
    assert [seen.names[label] for label in seen.labels] == [val_index.labels[video.label] for video in val_index.videos]
    for place, video in enumerate(val_index.videos[:4]):
        clips = torch.from_numpy(load_clip(val_index.path_of(video), loaded.spec))
        assert len(clips) == 2
        with torch.inference_mode():
            scores = loaded.model(clips).mean(0)
            features = [net.features(net.normalise(net.as_frames(clips))) for net in loaded.model.networks]
            weights = loaded.model.branches["pa"].head.timescale_weights(features[1]).mean(0)
        np.testing.assert_allclose(seen.scores[place], scores.numpy(), **SAME)
        np.testing.assert_allclose(seen.features[place], torch.cat([one.mean((0, 1)) for one in features]).numpy(), **SAME)
        np.testing.assert_allclose(seen.timescale_weights["pa"][place], weights.numpy(), **SAME)
    assert list(seen.timescale_weights) == ["rgb", "pa"]
    export_bundle(models["tsn-r18"], tmp_path / "bundle")
    one, other = (see_data_set(open_looker(model), val_index) for model in (models["tsn-r18"], tmp_path / "bundle"))
    np.testing.assert_allclose(other.features, one.features, **SAME)
    np.testing.assert_allclose(other.scores, one.scores, **SAME)


def test_the_command_writes_a_page_and_lists_what_it_could_not_read(models, val_index, tmp_path, capsys):
    folder = Path(shutil.copytree(val_index.root, tmp_path / "videos"))
    bad = val_index.videos[3]
    (folder / bad.path).write_bytes(b"no video")
    index = replace(val_index, root=folder)
    index.save(tmp_path / "index.jsonl")
    page = tmp_path / "page.html"
    asked = ["explain", str(models["pan-full-r18"]), "--data", str(tmp_path / "index.jsonl"), "--against", str(models["tsn-r18"])]
    assert main([*asked, "--out", str(page), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    text = page.read_text(encoding="utf-8")
    assert [item["path"] for item in document["bad_videos"]] == [bad.path]
    assert bad.path in text
    assert document["videos"] == 11
    # Eleven classes: the twelfth's only video could not be read. Gains are the models' own accuracies.
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
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert text.count("<circle") == 22
    assert "All 11 videos" in text
    # The same again, to the last byte.
    assert main([*asked, "--out", str(tmp_path / "again.html"), "--json"]) == 0
    assert {**json.loads(capsys.readouterr().out), "out": ""} == {**document, "out": ""}
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text
    # Fewer on the map than there are: said, and the classes are as they were.
    assert main([*asked, "--out", str(page), "--json", "--most", "10"]) == 0
    fewer = json.loads(capsys.readouterr().out)
    assert len(fewer["models"][0]["map"]["points"]) == 10
    assert fewer["per_class"] == document["per_class"]
    assert "10 of 11 videos" in page.read_text(encoding="utf-8")


def test_mistakes_are_told(models, val_index, train_index, tmp_path, capsys):
    index, model = tmp_path / "index.jsonl", str(models["tsn-r18"])
    val_index.save(index)
    names = tuple("other" if number == 0 else name for number, name in enumerate(val_index.labels))
    replace(val_index, labels=names).save(tmp_path / "strange.jsonl")
    replace(val_index, root=tmp_path / "nowhere").save(tmp_path / "gone.jsonl")
    there = sorted(tmp_path.iterdir())
    for words, said in (
        (["--data", str(index), "--out", str(tmp_path / "x.mp4")], "one of .html"),
        (["--data", str(index), "--out", str(index)], "suffix"),
        ([], "neither a video nor --data"),
        (["a.mp4", "--data", str(index)], "both a video, a.mp4"),
        (["a.mp4", "--against", model], "--data INDEX"),
        (["--data", str(index), "--label", "up"], "one video"),
        (["--data", str(index), "--most", "4", "--out", str(tmp_path / "x.html")], "at least 10"),
        (["--data", str(tmp_path / "strange.jsonl"), "--out", str(tmp_path / "x.html")], "'other'"),
        (["--data", str(tmp_path / "gone.jsonl"), "--out", str(tmp_path / "x.html")], "not one of 12 videos"),
        (["--data", str(index), "--against", str(tmp_path / "none"), "--out", str(tmp_path / "x.html")], "no such checkpoint"),
    ):
        assert main(["explain", model, *words]) == 1, words
        assert said in " ".join(capsys.readouterr().err.split()), words
    assert sorted(tmp_path.iterdir()) == there


def test_scores_that_are_no_numbers_are_named(models, val_index, tmp_path):
    loaded = load_checkpoint(models["tsn-r18"])
    loaded.model.heads[0].get_parameter("pred.weight").data[0, 0] = float("nan")
    path = tmp_path / "broken.safetensors"
    save_checkpoint(path, loaded.model, model_name=loaded.name, recipe={}, spec=loaded.spec, labels=loaded.labels, metrics={})
    with pytest.raises(FlowlessError, match="12 of 12 videos have features or scores that are no numbers"):
        see_data_set(open_looker(path), val_index)


def test_a_page_of_many_classes():
    names = tuple(f"<class {number:02}>" for number in range(50))
    truth = [name for name in names for _ in range(2)]
    mine = seen_of(truth, truth, names=names)
    theirs = seen_of([names[0] if place % 3 else label for place, label in enumerate(truth)], truth, names=names)
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
    # 40 rows, and all of them on a click.
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

"""`flowless bench real`: alike for all, frames reversed and shuffled exactly, opposite actions counted, the test set kept apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowless.bench.lib.networks import random_model
from flowless.bench.systems import comparison
from flowless.bench.systems.comparison import real, trainings_of
from flowless.bench.systems.order_scores import ORDERS, Confusions, reorder, row_of, score_orders, share_right
from flowless.bench.systems.result_page import readme_lines, render
from flowless.bench.systems.settings import Real
from flowless.bench.systems.system_list import SHUFFLE_SEED
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_record
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.checkpoints import save_checkpoint
from flowless.train.recipes import find_recipe

LABELS = ("jump", "left", "right")


@pytest.fixture
def settings(tmp_path: Path) -> Real:
    """Return settings with a training index, whose content does not matter."""
    index = tmp_path / "a.jsonl"
    index.write_text("index")
    return Real(train=index, test=tmp_path / "b.jsonl", out=tmp_path / "real.json")


@pytest.mark.parametrize(("segments", "frames"), [(8, 1), (3, 4), (1, 5)])
def test_all_frames_of_a_clip_change_places_across_segments(segments: int, frames: int) -> None:
    count = segments * frames
    # Every pixel is its frame's number in the clip, plus 100 times the clip's.
    numbers = np.arange(count).reshape(segments, frames) + 100 * np.arange(2)[:, None, None]
    clips = np.broadcast_to(numbers[..., None, None, None], (2, segments, frames, 2, 3, 3)).astype(np.uint8)
    orders: dict[str, np.ndarray] = dict(zip(ORDERS, reorder(clips, np.random.default_rng(SHUFFLE_SEED)), strict=True))
    rng = np.random.default_rng(SHUFFLE_SEED)
    for clip in range(2):
        wanted = {"forwards": range(count), "reversed": range(count)[::-1], "shuffled": rng.permutation(count)}
        for name, order in wanted.items():
            assert orders[name].shape == clips.shape
            assert orders[name][clip, ..., 1, 2, 2].ravel().tolist() == [100 * clip + place for place in order]


@pytest.mark.parametrize(("name", "frames"), [("tsm-r18", 1), ("pan-lite-r18", 2), ("tsn-r18", 1)])
def test_every_order_scores_the_frames_that_the_sampling_took(tmp_path: Path, val_index: DatasetIndex, name: str, frames: int) -> None:
    path, spec = tmp_path / "a.safetensors", ClipSpec(segments=4, frames_per_segment=frames, height=32, width=32, short_side=32)
    model = random_model(name, spec=spec, classes=len(val_index.labels), width=0.25)
    recipe = find_recipe(f"{name}/tiny").to_dict()
    save_checkpoint(path, model, model_name=name, recipe=recipe, spec=spec, labels=val_index.labels, metrics={})
    found, labels = score_orders(path, val_index), [record.label for record in val_index.videos]
    clips = np.concatenate([load_record(val_index, record, spec) for record in val_index.videos])
    predictions = []
    for order, shown in zip(ORDERS, reorder(clips, np.random.default_rng(SHUFFLE_SEED)), strict=True):
        with torch.inference_mode():
            predicted = model(torch.from_numpy(shown)).numpy().argmax(1)
        wanted = np.zeros_like(found[order])
        np.add.at(wanted, (labels, predicted), 1)
        np.testing.assert_array_equal(found[order], wanted)
        predictions.append(predicted.tolist())
    assert len(set(predictions[0])) > 2
    assert (predictions[0] == predictions[1] == predictions[2]) == (name == "tsn-r18"), "TSN alone is blind to order"


def confusions(forwards: list[list[int]], backwards: list[list[int]] | None = None) -> Confusions:
    """Return a run's videos of jump, left, right (rows) by what they were classified as; shuffled, all are jumps."""
    always = [[sum(row), 0, 0] for row in forwards]
    return {order: np.array(counts) for order, counts in zip(ORDERS, (forwards, backwards or forwards, always), strict=True)}


def test_a_row_is_of_all_seeds_and_the_last_epoch() -> None:
    backwards = [[2, 0, 0], [0, 0, 2], [0, 2, 0]]
    runs = [confusions([[1, 1, 0], [0, 1, 1], [0, 0, 2]], backwards), confusions([[2, 0, 0], [1, 0, 1], [0, 1, 1]], backwards)]
    results = [{"history": [{"train_top1": 0.1}, {"train_top1": 0.9}]}] * 2
    found = row_of("tsm", runs, results, labels=LABELS, pairs=[["left", "right"]])
    assert (found["seeds"], found["top1"], found["spread"]) == ([0.6667, 0.5], 0.5833, 0.1179)
    assert (found["mean_class"], found["reversed_top1"], found["shuffled_top1"]) == (0.5833, 0.3333, 0.3333)
    assert found["opposites"] == {"left": {"right": 1, "opposite": 2, "other": 1}, "right": {"right": 3, "opposite": 1, "other": 0}}
    assert (found["opposite_top1"], found["train_top1"]) == (0.5, 0.9)
    assert found["pairs"] == {"left / right": 0.75}, "of the first seed"
    assert found["per_class"] == {"jump": 0.75, "left": 0.25, "right": 0.75}


def test_without_videos_there_is_no_share() -> None:
    assert share_right(np.array([[1, 1], [0, 0]]), ("a", "b"), ["b"]) is None
    assert share_right(np.array([[1, 1], [0, 0]]), ("a", "b"), []) is None


def rows() -> list[dict[str, Any]]:
    """Return rows as measured: TSN blind, TSM seeing, STM hardly."""
    same = {"spread": None, "mean_class": 0.5, "train_top1": 1.0, "seeds": [0.6], "shuffled_top1": 0.2}
    figures = (("tsn", 0.6, 0.5, 0.6), ("tsm", 0.8, 0.7, 0.3), ("stm", 0.7, 0.6, 0.65))
    return [{**same, "system": name, "top1": a, "opposite_top1": b, "reversed_top1": c} for name, a, b, c in figures]


def test_goals_are_the_best_system_the_lead_on_opposites_and_the_fall(settings: Real) -> None:
    found = {goal["goal"]: goal["met"] for goal in settings.goals(rows())}
    assert found == {
        "the best system, tsm: top-1": True,
        "tsn: top-1 lost on reversed clips": True,
        "tsm: top-1 over tsn's on opposite actions": True,
        "tsm: top-1 lost on reversed clips": True,
        "tsm: top-1 lost on shuffled clips": True,
        "stm: top-1 over tsn's on opposite actions": False,
        "stm: top-1 lost on reversed clips": False,
        "stm: top-1 lost on shuffled clips": True,
    }
    assert len(settings.goals(rows()[1:])) == 5, "without TSN there is no lead over it"


def test_tables_name_every_figure() -> None:
    more = {"seeds": [0.7, 0.9], "spread": 0.1414, "opposite_top1": None}
    document: dict[str, Any] = {
        "benchmark": "real",
        "environment": {"processor": "P", "cores": 2, "python": "3", "versions": {}},
        "settings": {
            "labels": 27,
            "train": {"videos": 431},
            "test": {"videos": 430},
            "recipe": {"size": 48, "epochs": 30},
            "opposites": [],
        },
        "systems": [*rows(), {**rows()[1], **more}],
        "goals": [],
    }
    *_, stm, tsm = readme_lines(document)
    assert stm == "| stm | 70.0 (1 seed) | 50.0 | 60.0 | 65.0 | 20.0 |"
    assert tsm == "| tsm | 80.0 ± 14.1 | 50.0 |  | 30.0 | 20.0 |"
    for row in document["systems"]:
        row.update(about="a system", per_class={"a": 0.5, "b": 0.25})
    page, plot = render(document)
    assert "<td>b, 25 %; a, 50 %</td>" in page
    assert plot == ""


def test_every_system_is_trained_alike(settings: Real) -> None:
    recipes = {name: settings.training(name, seed=1).recipe.to_dict() for name in settings.systems}
    for recipe in recipes.values():
        differs = {name for name, value in recipe.items() if value != recipes["tsn"].get(name, value)}
        assert differs <= {"name", "model", "frames_per_segment", "average"}
    assert (recipes["tsn"]["epochs"], recipes["tsn"]["seed"], recipes["tsn"]["width"], recipes["tsn"]["flip"]) == (24, 1, 0.25, False)
    assert {name: recipe["frames_per_segment"] for name, recipe in recipes.items()} == {
        **dict.fromkeys(("tsn", "tsm", "stm"), 1),
        **dict.fromkeys(("pan-lite", "pan-full", "da-tsm"), 4),
    }
    assert settings.training("tsn", 0).recipe.rate_at(0.3 * 24) == pytest.approx(0.002), "one cycle reaches lr itself"


def test_the_test_videos_are_never_named_in_training(settings: Real) -> None:
    for training in trainings_of(settings).values():
        assert str(settings.train) in training.command()
        assert "b.jsonl" not in " ".join(training.command())


def test_runs_of_other_videos_and_epochs_lie_apart(settings: Real) -> None:
    folders = set()
    for text, epochs in (("one", 1), ("other", 1), ("one", 2)):
        settings.train.write_text(text)
        folders.add(replace(settings, epochs=epochs).training("pan-lite", 0).folder)
    assert len(folders) == 3


def test_pairs_are_found_given_or_refused(settings: Real) -> None:
    labels = ("swipe_left", "swipe_right", "sit_to_stand", "on/off", "off")

    def pairs(*given: str) -> list[list[str]]:
        return replace(settings, opposites=given).pairs(labels)

    assert settings.pairs(labels) == [["swipe_left", "swipe_right"]]
    assert pairs() == []
    assert pairs("on/off/off", "sit_to_stand/swipe_left") == [["on/off", "off"], ["sit_to_stand", "swipe_left"]]
    for wrong in ("swipe_left", "off/off", "off/on"):
        with pytest.raises(FlowlessError, match=f"'{wrong}' is not LABEL/LABEL of two of the labels swipe_left, swipe_right"):
            pairs("swipe_left/swipe_right", wrong)


def test_indexes_that_cannot_be_used_are_refused_before_training(
    tmp_path: Path, shapes: Path, train_index: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "train_all", lambda *_: pytest.fail("training was begun"))
    train, test, options = str(shapes / "train.index.jsonl"), str(shapes / "val.index.jsonl"), ["--out", str(tmp_path / "real.json")]
    with pytest.raises(FlowlessError, match="no such index"):
        real([str(tmp_path / "none.jsonl"), test, *options])
    with pytest.raises(FlowlessError, match="24 videos are in the training and in the test index"):
        real([train, train, *options])
    replace(train_index, labels=("new", *train_index.labels[1:])).save(tmp_path / "other.jsonl")
    with pytest.raises(FlowlessError, match=r"labels that the model was not trained on: 'new'"):
        real([train, str(tmp_path / "other.jsonl"), *options])
    replace(train_index, videos=train_index.videos[:9]).save(tmp_path / "few.jsonl")
    with pytest.raises(FlowlessError, match="fewer than batch_size, 10"):
        real([str(tmp_path / "few.jsonl"), test, *options])
    with pytest.raises(FlowlessError, match="nothing is trained yet"):
        real([train, test, *options, "--so-far"])
    assert not (tmp_path / "real").exists()


@pytest.mark.slow
def test_trained_tested_and_never_twice(tmp_path: Path, shapes: Path) -> None:
    out = tmp_path / "real.json"
    small = [str(shapes / "train.index.jsonl"), str(shapes / "val.index.jsonl"), "--epochs", "1", "--seeds", "1", "--json"]
    args = [*small, "--out", str(out), "--opposites", "right/left", "--systems", "tsn"]
    real(args)
    document = json.loads(out.read_text(encoding="utf-8"))
    (kept,) = (tmp_path / "real").glob("*/1-epochs-fp32/tsn-0/last.safetensors")
    written = kept.stat().st_mtime_ns
    (tsn,) = document["systems"]
    assert tsn["reversed_top1"] == tsn["top1"] == tsn["seeds"][0]
    assert sum(sum(counts.values()) for counts in tsn["opposites"].values()) == 2
    assert document["settings"]["test"] == {"index": "val.index.jsonl", "videos": 12}
    assert document["settings"]["unreadable"] == 0
    run = json.loads((kept.parent / "run.json").read_text(encoding="utf-8"))
    assert run["validation_videos"] == 0, "the test videos are not seen in training"
    real([*args, "pan-lite"])
    document = json.loads(out.read_text(encoding="utf-8"))
    assert [one["system"] for one in document["systems"]] == ["tsn", "pan-lite"]
    assert kept.stat().st_mtime_ns == written
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "src=" not in page
    assert out.with_suffix(".svg").read_text(encoding="utf-8") in page
    # A result of its own adds a system to an earlier one, whose settings must be the same.
    added = [*small, "--out", str(tmp_path / "added.json"), "--systems", "stm", "--earlier", str(out)]
    with pytest.raises(FlowlessError, match=r"opposites \[\['right', 'left'\]\], here \[\]"):
        real(added)
    real([*added, "--opposites", "right/left"])
    both = json.loads((tmp_path / "added.json").read_text(encoding="utf-8"))
    assert [one["system"] for one in both["systems"]] == ["tsn", "pan-lite", "stm"]
    assert both["systems"][0] == {**document["systems"][0], "environment": document["environment"]}
    assert "Trained in an earlier run: tsn, pan-lite" in (tmp_path / "added.html").read_text(encoding="utf-8")
    # With --so-far, what is not trained yet is left out.
    real([*args, "stm", "--opposites", "--so-far"])
    document = json.loads(out.read_text(encoding="utf-8"))
    assert [(one["system"], one["opposite_top1"]) for one in document["systems"]] == [("tsn", None)]

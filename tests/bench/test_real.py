"""`flowless bench real`: alike for all, frames reversed and shuffled exactly, opposite actions counted, the test set kept apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from flowless.bench.systems import comparison
from flowless.bench.systems.comparison import row_of
from flowless.bench.systems.frame_orders import ORDERS, SHUFFLE_SEED, OrderScores, count_opposites, reorder, score_orders, share
from flowless.bench.systems.real import NAMES, Real, main
from flowless.bench.systems.result_page import readme_lines, table_of
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_record
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.commands.train import TrainArgs
from flowless.train.models import build_model
from flowless.train.recipes import find_recipe

LABELS = ("jump", "left", "right")
PAIR = (("left", "right"),)
SETTINGS = Real(train=Path("a.jsonl"), test=Path("b.jsonl"), precision="fp32")


def numbered(batch: int, segments: int, frames: int) -> np.ndarray:
    """Return clips whose every pixel is its frame's number in the clip, from 0, plus 100 times the clip's."""
    numbers = np.arange(segments * frames).reshape(segments, frames) + 100 * np.arange(batch)[:, None, None]
    return np.broadcast_to(numbers[..., None, None, None], (batch, segments, frames, 2, 3, 3)).astype(np.uint8)


@pytest.mark.parametrize(("segments", "frames"), [(8, 1), (3, 4), (1, 5)])
def test_all_frames_of_a_clip_change_places_across_segments(segments: int, frames: int) -> None:
    clips, count = numbered(2, segments, frames), segments * frames
    orders: dict[str, np.ndarray] = dict(zip(ORDERS, reorder(clips, np.random.default_rng(SHUFFLE_SEED)), strict=True))
    rng = np.random.default_rng(SHUFFLE_SEED)
    for clip in range(2):
        wanted = {"forwards": range(count), "reversed": range(count)[::-1], "shuffled": rng.permutation(count)}
        for name, order in wanted.items():
            assert orders[name].shape == clips.shape
            assert orders[name][clip, ..., 1, 2, 2].ravel().tolist() == [100 * clip + place for place in order]


def made(path: Path, name: str, *, frames: int, labels: tuple[str, ...]) -> Path:
    """Write the checkpoint of an untrained model."""
    torch.manual_seed(3)
    spec = ClipSpec(segments=4, frames_per_segment=frames, height=32, width=32, short_side=32)
    model = build_model(name, classes=len(labels), spec=spec, width=0.25)
    recipe = find_recipe(f"{name}/tiny").to_dict()
    save_checkpoint(path, model, model_name=name, recipe=recipe, spec=spec, labels=labels, metrics={})
    return path


def test_every_order_scores_the_frames_that_the_sampling_took(tmp_path: Path, val_index: DatasetIndex) -> None:
    cases = (("tsm-r18", 1), ("pan-lite-r18", 2), ("tsn-r18", 1))
    paths = [made(tmp_path / f"{name}.safetensors", name, frames=frames, labels=val_index.labels) for name, frames in cases]
    found = [score_orders(path, val_index) for path in paths]
    for path, run in zip(paths, found, strict=True):
        assert run.unreadable == 0
        model = load_checkpoint(path).model.eval()
        clips = np.concatenate([load_record(val_index, record, model.spec) for record in val_index.videos])
        assert run.clip == model.spec.shape[:2]
        assert run.labels.tolist() == [record.label for record in val_index.videos]
        rng = np.random.default_rng(SHUFFLE_SEED)
        frames = clips.reshape(len(clips), -1, *clips.shape[3:])
        wanted = {
            "forwards": frames,
            "reversed": frames[:, ::-1],
            "shuffled": np.stack([clip[rng.permutation(len(clip))] for clip in frames]),
        }
        for order in ORDERS:
            with torch.inference_mode():
                scores = model(torch.from_numpy(wanted[order].reshape(clips.shape).copy())).numpy()
            np.testing.assert_allclose(run.scores[order], scores, rtol=1e-4, atol=1e-5)
    blind = found[2].scores
    for order in ORDERS[1:]:
        np.testing.assert_allclose(blind[order], blind["forwards"], rtol=1e-4, atol=1e-5)
        assert not np.allclose(found[0].scores[order], found[0].scores["forwards"], atol=1e-4)


def scored(forwards: list[int], reverse: list[int] | None = None) -> OrderScores:
    """Return a run that outcomes so on two clips of each of jump, left, right."""
    outcomes = {"forwards": forwards, "reversed": reverse or forwards, "shuffled": [0] * 6}
    scores = {order: np.eye(3, dtype=np.float32)[given] for order, given in outcomes.items()}
    return OrderScores(scores=scores, labels=np.array([0, 0, 1, 1, 2, 2]), names=LABELS, clip=(8, 1))


def test_opposite_actions_are_counted() -> None:
    runs = [scored([0, 1, 1, 2, 2, 2]), scored([0, 0, 0, 2, 1, 2])]
    outcomes = count_opposites(runs, PAIR)
    assert outcomes == {"left": {"right": 1, "opposite": 2, "other": 1}, "right": {"right": 3, "opposite": 1, "other": 0}}
    assert (share(outcomes, "right"), share(outcomes, "opposite")) == (0.5, 0.375)
    assert share(count_opposites(runs, ()), "right") is None


def test_a_row_is_of_all_seeds_and_the_last_epoch() -> None:
    runs = [scored([0, 1, 1, 2, 2, 2], [0, 0, 2, 2, 1, 1]), scored([0, 0, 0, 2, 1, 2], [0, 0, 2, 2, 1, 1])]
    results = [{"history": [{"train_top1": 0.1}, {"train_top1": 0.9}], "seconds": 2.0}] * 2
    found = row_of("tsm", runs, results, pairs=PAIR)
    assert (found["seeds"], found["top1"], found["spread"]) == ([0.6667, 0.5], 0.5833, 0.1179)
    assert (found["mean_class"], found["reversed_top1"], found["shuffled_top1"]) == (0.5833, 0.3333, 0.3333)
    assert (found["opposite_top1"], found["reversed_as_opposite"], found["train_top1"]) == (0.5, 1.0, 0.9)
    assert found["pairs"] == {"left / right": 0.75}, "of the first seed"
    assert found["per_class"] == {"jump": 0.75, "left": 0.25, "right": 0.75}


def rows() -> list[dict[str, Any]]:
    """Return rows as measured: TSN blind, TSM seeing, STM hardly."""
    same = {"spread": None, "mean_class": 0.5, "train_top1": 1.0, "seeds": [0.6], "shuffled_top1": 0.2}
    figures = (("tsn", 0.6, 0.5, 0.6), ("tsm", 0.8, 0.7, 0.3), ("stm", 0.7, 0.6, 0.65))
    return [{**same, "system": name, "top1": a, "opposite_top1": b, "reversed_top1": c} for name, a, b, c in figures]


def test_goals_are_the_best_system_the_lead_on_opposites_and_the_fall() -> None:
    found = {goal["goal"]: goal["met"] for goal in SETTINGS.goals(rows())}
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
    assert len(SETTINGS.goals(rows()[1:])) == 5, "without TSN there is no lead over it"


def test_tables_name_every_figure() -> None:
    settings = {"labels": 27, "train": {"videos": 431}, "test": {"videos": 430}, "recipe": {"size": 48, "epochs": 30}}
    more = {"seeds": [0.7, 0.9], "spread": 0.1414, "opposite_top1": None}
    document = {"benchmark": "real", "settings": settings, "systems": [*rows(), {**rows()[1], **more}]}
    *_, stm, tsm = readme_lines(document)
    assert stm == "| stm | 70.0 (1 seed) | 50.0 | 60.0 | 65.0 | 20.0 |"
    assert tsm == "| tsm | 80.0 ± 14.1 | 50.0 |  | 30.0 | 20.0 |"
    for row in document["systems"]:
        row.update(clip=[8, 1], per_class={"a": 0.5, "b": 0.25})
    headings, cells = table_of(document, page=True)
    assert dict(zip(headings, cells[0], strict=True))["hardest actions"] == "b, 25 %; a, 50 %"


def test_every_system_is_trained_alike() -> None:
    settings = replace(SETTINGS, epochs=3, frames_per_segment=3, lr=0.01)
    recipes = {name: settings.recipe(name, seed=1).to_dict() for name in NAMES}
    for recipe in recipes.values():
        differs = {name for name, value in recipe.items() if value != recipes["tsn"].get(name, value)}
        assert differs <= {"name", "model", "frames_per_segment", "average"}
    assert (recipes["tsn"]["epochs"], recipes["tsn"]["seed"], recipes["tsn"]["width"], recipes["tsn"]["flip"]) == (3, 1, 0.25, False)
    assert {name: recipe["frames_per_segment"] for name, recipe in recipes.items()} == {
        **dict.fromkeys(("tsn", "tsm", "stm"), 1),
        **dict.fromkeys(("pan-lite", "pan-full", "da-tsm"), 3),
    }
    assert settings.recipe("tsn", seed=0).rate_at(0.9) == pytest.approx(0.01), "one cycle reaches lr itself"


def test_the_test_videos_are_never_named_in_training(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("index")
    settings = replace(SETTINGS, train=tmp_path / "a.jsonl", test=tmp_path / "b.jsonl", out=tmp_path / "real.json", seeds=2)
    trainings = settings.trainings()
    assert list(trainings)[: len(NAMES) + 1] == [*((name, 0) for name in NAMES), ("tsn", 1)]
    for training in trainings.values():
        command = training.command("--resume")
        read = tyro.cli(TrainArgs, args=command[5:], default=TrainArgs(data=Path("x"), recipe=find_recipe(command[4])))
        assert (read.recipe, read.data, read.val_data) == (training.recipe, settings.train, None)
        assert "b.jsonl" not in " ".join(command)


def test_runs_of_other_videos_and_recipes_lie_apart(tmp_path: Path) -> None:
    index = tmp_path / "a.jsonl"
    settings = Real(train=index, test=index, out=tmp_path / "real.json", precision="fp32")
    folders = set()
    for text, changes in (("one", {}), ("other", {}), ("one", {"epochs": 2}), ("one", {"frames_per_segment": 3}), ("one", {"size": 40})):
        index.write_text(text)
        folders.add(replace(settings, **changes).training("pan-lite", 0).folder)
    assert len(folders) == 5


def test_pairs_are_found_given_or_refused() -> None:
    labels = ("swipe_left", "swipe_right", "sit_to_stand", "on/off", "off")

    def pairs(*given: str) -> list[list[str]]:
        return replace(SETTINGS, opposites=given).pairs(labels)

    assert SETTINGS.pairs(labels) == [["swipe_left", "swipe_right"]]
    assert pairs() == []
    assert pairs("on/off/off", "sit_to_stand/swipe_left") == [["on/off", "off"], ["sit_to_stand", "swipe_left"]]
    with pytest.raises(FlowlessError, match=r"'swipe_left' is not LABEL/LABEL.*swipe_right.*'off/off' is not.*'off/on' is not"):
        pairs("swipe_left", "off/off", "off/on")
    with pytest.raises(FlowlessError, match="'off' is in more than one pair"):
        pairs("off/swipe_left", "swipe_right/off")


def test_a_stack_of_one_frame_is_refused() -> None:
    with pytest.raises(FlowlessError, match="frames_per_segment is 1; it must be at least 2"):
        Real(train=Path("a"), test=Path("b"), frames_per_segment=1)


def small(shapes: Path, out: Path, *args: str) -> list[str]:
    """Return the args of a tiny run."""
    indexes = [str(shapes / "train.index.jsonl"), str(shapes / "val.index.jsonl")]
    size = ("--size", "32", "--short-side", "32", "--segments", "2", "--frames-per-segment", "2", "--batch-size", "8", "--epochs", "1")
    return [*indexes, "--out", str(out), *size, "--seeds", "1", "--json", *args]


def test_indexes_that_cannot_be_used_are_refused_before_training(
    tmp_path: Path, shapes: Path, train_index: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "train_all", lambda *_, **__: pytest.fail("training was begun"))
    out = tmp_path / "real.json"
    args = small(shapes, out)
    with pytest.raises(FlowlessError, match="no such index"):
        main([*args, str(tmp_path / "none.jsonl")][-1:] + args[1:])
    with pytest.raises(FlowlessError, match="24 videos are in the training and in the test index"):
        main([args[0], args[0], *args[2:]])
    other = replace(train_index, labels=("new", *train_index.labels[1:]))
    other.save(tmp_path / "other.jsonl")
    with pytest.raises(FlowlessError, match=r"labels that the model was not trained on: 'new'"):
        main([args[0], str(tmp_path / "other.jsonl"), *args[2:]])
    with pytest.raises(FlowlessError, match="fewer than batch_size, 25"):
        main([*args, "--batch-size", "25"])
    with pytest.raises(FlowlessError, match="nothing is trained yet"):
        main([*args, "--so-far"])
    assert not out.with_suffix("").exists()


@pytest.mark.slow
def test_trained_tested_and_never_twice(tmp_path: Path, shapes: Path) -> None:
    out = tmp_path / "real.json"
    args = small(shapes, out, "--opposites", "right/left", "--jobs", "1", "--systems", "tsn")
    main(args)
    document = json.loads(out.read_text(encoding="utf-8"))
    (kept,) = (tmp_path / "real").glob("*/tsn-0/last.safetensors")
    written = kept.stat().st_mtime_ns
    (tsn,) = document["systems"]
    assert tsn["reversed_top1"] == tsn["top1"] == tsn["seeds"][0]
    assert sum(sum(counts.values()) for counts in tsn["opposites"].values()) == 2
    assert document["settings"]["test"] == {"index": "val.index.jsonl", "videos": 12}
    assert document["settings"]["unreadable"] == 0
    run = json.loads((kept.parent / "run.json").read_text(encoding="utf-8"))
    assert run["validation_videos"] == 0, "the test videos are not seen in training"
    main([*args[:-1], "tsn", "pan-lite"])
    document = json.loads(out.read_text(encoding="utf-8"))
    assert [(one["system"], one["clip"]) for one in document["systems"]] == [("tsn", [2, 1]), ("pan-lite", [2, 2])]
    assert kept.stat().st_mtime_ns == written
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "src=" not in page
    assert out.with_suffix(".svg").read_text(encoding="utf-8") in page
    # A result of its own adds a system to an earlier one, whose settings must be the same.
    added = [*args[:2], "--out", str(tmp_path / "added.json"), *args[4:-1], "stm", "--earlier", str(out)]
    with pytest.raises(FlowlessError, match=r"recipe\.lr 0\.002, here 0\.003"):
        main([*added, "--lr", "0.003"])
    main(added)
    both = json.loads((tmp_path / "added.json").read_text(encoding="utf-8"))
    assert [one["system"] for one in both["systems"]] == ["tsn", "pan-lite", "stm"]
    assert both["systems"][0] == {**document["systems"][0], "environment": document["environment"]}
    assert "Trained in an earlier run: tsn, pan-lite" in (tmp_path / "added.html").read_text(encoding="utf-8")
    # With --so-far, what is not trained yet is left out.
    main([*args[:-1], "tsn", "stm", "--opposites", "--so-far"])
    document = json.loads(out.read_text(encoding="utf-8"))
    assert [(one["system"], one["opposite_top1"]) for one in document["systems"]] == [("tsn", None)]

"""`flowless bench systems`: the same conditions for all, runs kept and resumed, results shown as measured."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from flowless.bench.systems.result_page import COLOURS, accuracy_over_cost, readme_lines
from flowless.bench.systems.system_list import SYSTEMS
from flowless.bench.systems.systems import Systems, main
from flowless.bench.systems.training_runs import Training, train_all
from flowless.errors import FlowlessError
from flowless.machine import quick_precision
from flowless.train.commands.train import TrainArgs
from flowless.train.recipes import find_recipe

SMALL = Systems(out=Path("work.json"), train_videos=48, val_videos=24, epochs=3, seeds=2, precision="fp32")
#: Fields that may differ between systems: the network, its clip, and how its paper averages views.
OWN = {"name", "model", "segments", "frames_per_segment", "displacement_window", "average"}


def test_every_system_is_trained_alike() -> None:
    recipes = [SMALL.training(name, 1).recipe.to_dict() for name, system in SYSTEMS.items() if not system.of]
    for recipe in recipes[1:]:
        twins = {"objective", "colour_jitter", "grey", "scales"} if recipe["objective"] == "twins" else set()
        assert {name for name, value in recipe.items() if value != recipes[0].get(name, value)} <= OWN | twins
    assert {recipe["epochs"] for recipe in recipes} == {3}
    # No clip has more frames than a video.
    assert all(recipe["segments"] * recipe["frames_per_segment"] <= SMALL.frames for recipe in recipes)


def test_a_control_differs_in_its_videos_alone() -> None:
    for control in (system for system in SYSTEMS.values() if system.of):
        own, plain = SMALL.training(control.name, 0), SMALL.training(control.of, 0)
        assert own.recipe == plain.recipe
        assert own.data == Path(f"work/{48 * control.videos}-and-24-videos-of-16-frames/videos/train.index.jsonl")
        assert plain.data == Path("work/48-and-24-videos-of-16-frames/videos/train.index.jsonl")


def test_the_same_network_on_the_same_clip_is_timed_once() -> None:
    names = ("tsm", "tsm-more", "pan-lite", "stm-twins", "da-tsm-more")
    assert [SYSTEMS[name].cost_of for name in names] == ["tsm", "tsm", "pan-lite", "stm", "da-tsm"]


def test_first_seeds_come_first_and_controls_once() -> None:
    keys = list(replace(SMALL, systems=("da-tsm", "tsn", "tsm-more")).trainings())
    assert keys == [("tsn", 0), ("tsm-more", 0), ("da-tsm", 0), ("tsn", 1), ("da-tsm", 1)]


def test_the_command_line_says_the_recipe() -> None:
    for training in SMALL.trainings().values():
        command = training.command("--resume")
        train, recipe = command[3:5]
        assert (train, recipe) == ("train", training.recipe.name)
        read = tyro.cli(TrainArgs, args=command[5:], default=TrainArgs(data=Path("x"), recipe=find_recipe(recipe)))
        assert (read.recipe, read.resume) == (training.recipe, True)
        assert (read.data, read.val_data, read.out) == (training.data, training.val_data, training.folder)


@pytest.mark.parametrize("changes", [{"partial_bn": True}, {"flip": False}, {"steps": (3, 5)}])
def test_fields_of_every_kind_are_options(changes: dict[str, Any]) -> None:
    recipe = replace(find_recipe("tsn-r18/tiny"), **changes)
    command = Training(recipe=recipe, data=Path("a"), folder=Path("b")).command()
    read = tyro.cli(TrainArgs, args=command[5:], default=TrainArgs(data=Path("x"), recipe=find_recipe(recipe.name)))
    assert read.recipe == recipe


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"systems": ("tsn", "slowfast")}, "'slowfast'.*tsn.*stm"),
        ({"seeds": 0, "jobs": -1}, "seeds is 0.*jobs is -1"),
        ({"val_videos": 0}, "val_videos is 0"),
        ({"systems": ()}, "no system"),
        ({"out": Path("runs/page.html")}, "page.html; it must end in .json"),
    ],
)
def test_options_that_cannot_be_run_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowlessError, match=message):
        Systems(**fields)


def test_other_epochs_and_videos_are_kept_apart() -> None:
    changes: list[dict[str, Any]] = [{}, {"epochs": 4}, {"precision": "bf16"}, {"val_videos": 26}, {"frames": 8}, {"train_videos": 50}]
    assert len({replace(SMALL, **change).training("tsn", 0).folder for change in changes}) == len(changes)


def rows() -> list[dict[str, Any]]:
    """Return rows as measured: TSN blind, STM with two seeds, a control of it, and TSM in between."""
    cost = {"clip": [8, 1, 48, 48, 3], "parameters": 720_000, "macs": 99_000_000, "latency_ms": 2.5, "target": "openvino"}
    same = {"pairs": {"right / left": 0.9, "grow / shrink": 0.55}, "about": "a system", "train_top1": 0.7, **cost}
    figures = (("tsn", [0.4], None), ("stm", [0.98, 0.96], 0.0141), ("tsm", [0.5], None))
    made = [{"system": name, "base": name, "control": False, "seeds": top1, "spread": spread} for name, top1, spread in figures]
    made.insert(2, {**made[1], "system": "stm-more", "control": True, "about": "a control", "seeds": [0.99], "spread": None})
    return [{**same, **row, "top1": sum(row["seeds"]) / len(row["seeds"])} for row in made]


def test_goals_are_of_systems_and_not_of_controls() -> None:
    assert [(goal["goal"].split(":")[0], goal["met"]) for goal in SMALL.goals(rows())] == [("tsn", True), ("stm", True), ("tsm", False)]


def test_the_picture_names_every_system_once() -> None:
    assert set(COLOURS) == {name for name, system in SYSTEMS.items() if not system.of}
    drawn = accuracy_over_cost(rows(), blind=0.5)
    assert drawn.count(">stm<") == 1
    assert "on more videos" in drawn
    assert "on more videos" not in accuracy_over_cost(rows()[:2], blind=0.5)


def test_the_table_has_means_and_spreads() -> None:
    document = {"benchmark": "systems", "settings": {"train_videos": 48, "epochs": 2, "size": 48}, "systems": rows()}
    *_, tsn, stm, more, tsm, _, controls = readme_lines(document)
    assert tsn == "| tsn | 8 × 1 | 40.0 (1 seed) | grow / shrink, 55 % | 0.72 | 99 | 2.5 | openvino |"
    assert stm.startswith("| stm | 8 × 1 | 97.0 ± 1.4 | grow / shrink, 55 % |")
    assert (more[:12], tsm[:7]) == ("| stm-more |", "| tsm |")
    assert controls == "`stm-more` is a control."


def test_nothing_so_far_is_refused_before_videos_are_generated(tmp_path: Path) -> None:
    with pytest.raises(FlowlessError, match="nothing is trained yet"):
        main(["--out", str(tmp_path / "systems.json"), "--so-far"])
    assert not list(tmp_path.iterdir())


def test_a_failed_training_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    not_stopped = tmp_path / "not-stopped"
    long = [sys.executable, "-c", f"import pathlib, time; time.sleep(60); pathlib.Path({str(not_stopped)!r}).touch()"]
    commands = {"tsm-0": long, "tsn-0": [sys.executable, "-c", "raise SystemExit('a bad day')"]}
    monkeypatch.setattr(Training, "command", lambda training, *_: commands[training.name])
    settings = replace(SMALL, out=tmp_path / "work.json")
    # The error is that of the run that failed, not of the first one, which was terminated because of it.
    with pytest.raises(FlowlessError, match="training tsn-0 ended with 1: a bad day"):
        train_all({name: settings.training(name, 0) for name in ("tsm", "tsn")}, jobs=2)
    assert not not_stopped.exists()


def test_a_folder_is_trained_in_by_one_process(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl", reason="this system has no file locks")
    training = replace(SMALL, out=tmp_path / "work.json").training("tsn", 0)
    training.folder.parent.mkdir(parents=True)
    with training.folder.with_name("tsn-0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FlowlessError, match="another process trains"):
            train_all({"tsn": training})
    with pytest.raises(FlowlessError, match=r"training tsn-0 ended with 1: .*index.*tsn-0\.log"):
        train_all({"tsn": training})


@pytest.mark.slow
def test_trained_counted_timed_and_never_twice(tmp_path: Path) -> None:
    out = tmp_path / "systems.json"
    small = ("--train-videos", "48", "--val-videos", "24", "--epochs", "1", "--seeds", "1", "--jobs", "1", "--json")
    main(["--out", str(out), "--systems", "tsn", *small])
    document = json.loads(out.read_text(encoding="utf-8"))
    (row,) = document["systems"]
    assert row["clip"] == [8, 1, 48, 48, 3]
    assert row["latency_ms"] == min(row["latencies"][name] for name in ("openvino", "onnxruntime")) > 0
    assert row["reversed_top1"] == row["top1"], "TSN is blind to order"
    folder = tmp_path / "systems" / "48-and-24-videos-of-16-frames" / f"1-epochs-{quick_precision()}" / "tsn-0"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert row["seeds"] == [round(result["history"][-1]["val_top1"], 4)]
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "src=" not in page
    assert f"{100 * row['top1']:.1f}" in page
    assert out.with_suffix(".svg").read_text(encoding="utf-8") in page
    written = (folder / "last.safetensors").stat().st_mtime_ns
    # A system is added to an earlier result; the cost of a clip is measured anew for both.
    added = ["--out", str(tmp_path / "added.json"), "--systems", "tsm", *small, "--earlier", str(out)]
    with pytest.raises(FlowlessError, match="epochs 1, here 2"):
        main([*added, "--epochs", "2"])
    main(added)
    tsn, tsm = json.loads((tmp_path / "added.json").read_text(encoding="utf-8"))["systems"]
    assert (tsn["seeds"], tsn["pairs"], tsn["environment"]) == (row["seeds"], row["pairs"], document["environment"])
    assert (tsn["system"], tsm["system"], tsn["macs"], tsn["clip"]) == ("tsn", "tsm", row["macs"], row["clip"])
    assert tsn["latencies"] != row["latencies"]
    assert "Trained in an earlier run: tsn" in (tmp_path / "added.html").read_text(encoding="utf-8")
    # With --so-far, what is not trained yet is left out.
    main(["--out", str(out), "--systems", "tsn", "tsm", *small, "--so-far"])
    assert [row["system"] for row in json.loads(out.read_text(encoding="utf-8"))["systems"]] == ["tsn"]
    assert (folder / "last.safetensors").stat().st_mtime_ns == written

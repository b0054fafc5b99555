"""`flowless bench systems`: the same conditions for all, runs kept and resumed, results shown as measured."""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from flowless.bench.systems.comparison import systems, trainings_of
from flowless.bench.systems.result_page import COLOURS, accuracy_over_cost, readme_lines
from flowless.bench.systems.settings import Systems
from flowless.bench.systems.system_list import SYSTEMS
from flowless.bench.systems.training_runs import Training, _train, train_all
from flowless.errors import FlowlessError
from flowless.train.commands.train import TrainArgs
from flowless.train.recipes import find_recipe

SMALL = Systems(out=Path("work.json"), train_videos=48, val_videos=24, epochs=3, seeds=2)
#: Fields that may differ between systems: the network, its clip, and how its paper averages views.
OWN = {"name", "model", "segments", "frames_per_segment", "displacement_window", "average"}


def test_every_system_is_trained_alike() -> None:
    recipes = [SMALL.training(name, 1).recipe.to_dict() for name, system in SYSTEMS.items() if not system.of]
    for recipe in recipes[1:]:
        twins = {"objective", "colour_jitter", "grey", "scales"} if recipe["objective"] == "twins" else set()
        assert {name for name, value in recipe.items() if value != recipes[0].get(name, value)} <= OWN | twins
    assert {(recipe["epochs"], recipe["seed"], recipe["precision"]) for recipe in recipes} == {(3, 1, "fp32")}
    # No clip has more frames than a video.
    assert all(recipe["segments"] * recipe["frames_per_segment"] <= SMALL.conditions()["frames"] for recipe in recipes)


def test_a_control_differs_in_its_videos_alone() -> None:
    own, plain = SMALL.training("tsm-more", 0), SMALL.training("tsm", 0)
    assert own.recipe == plain.recipe
    assert own.data == Path("work/192-and-24-videos-of-16-frames/videos/train.index.jsonl")
    assert plain.data == Path("work/48-and-24-videos-of-16-frames/videos/train.index.jsonl")


def test_first_seeds_come_first_and_controls_once() -> None:
    keys = list(trainings_of(replace(SMALL, systems=("da-tsm", "tsn", "tsm-more"))))
    assert keys == [("tsn", 0), ("tsm-more", 0), ("da-tsm", 0), ("tsn", 1), ("da-tsm", 1)]


def read(command: list[str]) -> TrainArgs:
    """Parse a training's command line as `flowless train` does."""
    assert command[3] == "train"
    return tyro.cli(TrainArgs, args=command[5:], default=TrainArgs(data=Path("x"), recipe=find_recipe(command[4])))


def test_the_command_line_says_the_recipe() -> None:
    for training in trainings_of(SMALL).values():
        found = read(training.command("--resume"))
        assert (found.recipe, found.resume, found.data, found.out) == (training.recipe, True, training.data, training.folder)


@pytest.mark.parametrize("changes", [{"partial_bn": True}, {"flip": False}, {"steps": (3, 5)}])
def test_fields_of_every_kind_are_options(changes: dict[str, Any]) -> None:
    recipe = replace(find_recipe("tsn-r18/tiny"), **changes)
    assert read(Training(recipe=recipe, data=Path("a"), folder=Path("b")).command()).recipe == recipe


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"systems": ("tsn", "slowfast")}, "'slowfast'.*tsn.*stm"),
        ({"seeds": 0, "epochs": -1}, "seeds is 0.*epochs is -1"),
        ({"val_videos": 0}, "val_videos is 0"),
        ({"systems": ()}, "not one of the systems tsn"),
        ({"out": Path("runs/page.html")}, "page.html; it must end in .json"),
    ],
)
def test_options_that_cannot_be_run_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowlessError, match=message):
        Systems(**fields)


def test_other_epochs_and_videos_are_kept_apart() -> None:
    changes: list[dict[str, Any]] = [{}, {"epochs": 4}, {"precision": "bf16"}, {"val_videos": 26}, {"train_videos": 50}]
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
    assert [drawn.count(f">{row['system']}<") for row in rows()] == [1, 1, 1, 1]


def test_the_table_has_means_and_spreads() -> None:
    document = {"benchmark": "systems", "settings": {"train_videos": 48, "epochs": 2, "size": 48}, "systems": rows()}
    *_, tsn, stm, more, tsm, _, controls = readme_lines(document)
    assert tsn == "| tsn | 8 × 1 | 40.0 (1 seed) | grow / shrink, 55 % | 0.72 | 99 | 2.5 | openvino |"
    assert stm.startswith("| stm | 8 × 1 | 97.0 ± 1.4 | grow / shrink, 55 % |")
    assert (more[:12], tsm[:7]) == ("| stm-more |", "| tsm |")
    assert controls == "`stm-more` is a control."


def test_nothing_so_far_is_refused_before_videos_are_generated(tmp_path: Path) -> None:
    with pytest.raises(FlowlessError, match="nothing is trained yet"):
        systems(["--out", str(tmp_path / "systems.json"), "--so-far"])
    assert not list(tmp_path.iterdir())


def test_a_failed_training_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    not_stopped = tmp_path / "not-stopped"
    long = [sys.executable, "-c", f"import pathlib, time; time.sleep(60); pathlib.Path({str(not_stopped)!r}).touch()"]
    commands = {"tsm-0": long, "tsn-0": [sys.executable, "-c", "raise SystemExit('a bad day')"]}
    monkeypatch.setattr(Training, "command", lambda training, *_: commands[training.folder.name])
    monkeypatch.setattr("flowless.bench.systems.training_runs.usable_cores", lambda: 2)
    settings = replace(SMALL, out=tmp_path / "work.json")
    # The error is that of the run that failed, not of the first one, which was terminated because of it.
    with pytest.raises(FlowlessError, match="training tsn-0 ended with 1: a bad day"):
        train_all([settings.training(name, 0) for name in ("tsm", "tsn")])
    assert not not_stopped.exists()


def test_a_folder_that_another_process_trains_in_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import time; print('epoch 1', flush=True); time.sleep(60)"
    monkeypatch.setattr(Training, "command", lambda *_: [sys.executable, "-c", program])
    training, stop = replace(SMALL, out=tmp_path / "work.json").training("tsn", 0), threading.Event()
    output = training.folder.with_name("tsn-0.log")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_train, training, stop)
        try:
            while not (output.is_file() and output.read_text(encoding="utf-8")) and not first.done():
                time.sleep(0.05)
            with pytest.raises(FlowlessError, match="tsn-0: another process trains there"):
                train_all([training])
            assert output.read_text(encoding="utf-8") == "epoch 1\n"
        finally:
            stop.set()
        with pytest.raises(FlowlessError, match="training tsn-0 ended with -15: epoch 1"):
            first.result()


@pytest.mark.slow
def test_trained_counted_timed_and_never_twice(tmp_path: Path) -> None:
    out = tmp_path / "systems.json"
    small = ("--train-videos", "48", "--val-videos", "24", "--epochs", "1", "--seeds", "1", "--json")
    systems(["--out", str(out), "--systems", "tsn", *small])
    document = json.loads(out.read_text(encoding="utf-8"))
    (row,) = document["systems"]
    assert row["clip"] == [8, 1, 48, 48, 3]
    assert row["latency_ms"] == min(row["latencies"][name] for name in ("openvino", "onnxruntime")) > 0
    assert row["reversed_top1"] == row["top1"] == row["seeds"][0], "TSN is blind to order"
    assert document["settings"]["unreadable"] == 0
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "src=" not in page
    assert f"{100 * row['top1']:.1f}" in page
    assert out.with_suffix(".svg").read_text(encoding="utf-8") in page
    kept = tmp_path / "systems" / "48-and-24-videos-of-16-frames" / "1-epochs-fp32" / "tsn-0" / "last.safetensors"
    written = kept.stat().st_mtime_ns
    # A system is added to an earlier result; the cost of a clip is measured anew for both.
    added = ["--out", str(tmp_path / "added.json"), "--systems", "tsm", *small, "--earlier", str(out)]
    with pytest.raises(FlowlessError, match="epochs 1, here 2"):
        systems([*added, "--epochs", "2"])
    systems(added)
    tsn, tsm = json.loads((tmp_path / "added.json").read_text(encoding="utf-8"))["systems"]
    assert (tsn["seeds"], tsn["pairs"], tsn["environment"]) == (row["seeds"], row["pairs"], document["environment"])
    assert (tsn["system"], tsm["system"], tsn["macs"], tsn["clip"]) == ("tsn", "tsm", row["macs"], row["clip"])
    assert tsn["latencies"] != row["latencies"]
    assert "Trained in an earlier run: tsn" in (tmp_path / "added.html").read_text(encoding="utf-8")
    # With --so-far, what is not trained yet is left out.
    systems(["--out", str(out), "--systems", "tsn", "tsm", *small, "--so-far"])
    assert [row["system"] for row in json.loads(out.read_text(encoding="utf-8"))["systems"]] == ["tsn"]
    assert kept.stat().st_mtime_ns == written

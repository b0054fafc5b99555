"""`flowless bench systems`: alike for all, kept and gone on with, and told as measured."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from flowless.bench.lib import training_runs
from flowless.bench.lib.training_runs import Training
from flowless.bench.systems import systems_runs
from flowless.bench.systems.systems import Systems, _goals, _row, main, planned, table
from flowless.bench.systems.systems_config import SYSTEMS, System
from flowless.bench.systems.systems_page import COLOURS, accuracy_over_cost, readme_lines
from flowless.bench.systems.systems_pairs import by_pair
from flowless.bench.systems.systems_runs import Race, Run
from flowless.errors import FlowlessError
from flowless.machine import quick_precision
from flowless.train.commands.train import TrainArgs
from flowless.train.recipes import find_recipe

RACE = Race(train_videos=48, val_videos=24, frames=16, epochs=3, seeds=2, precision="fp32")
#: What a system may have of its own: its network, the clip that it takes, and how its paper averages views.
OWN = {"name", "model", "segments", "frames_per_segment", "displacement_window", "average"}


def named(name: str) -> System:
    """Return the contestant of a name."""
    return next(system for system in SYSTEMS if system.name == name)


def test_every_system_is_trained_alike() -> None:
    recipes = [Run(system, 1).recipe(RACE).to_dict() for system in SYSTEMS if not system.of]
    for recipe in recipes[1:]:
        twins = {"objective", "colour_jitter", "grey", "scales"} if recipe["objective"] == "twins" else set()
        assert {name for name, value in recipe.items() if value != recipes[0].get(name, value)} <= OWN | twins
    assert {recipe["epochs"] for recipe in recipes} == {3}
    # No clip has more frames than a video.
    assert all(recipe["segments"] * recipe["frames_per_segment"] <= RACE.frames for recipe in recipes)


def test_a_control_differs_in_its_videos_and_their_clip_alone() -> None:
    for control in (system for system in SYSTEMS if system.of):
        plain = named(control.of)
        assert RACE.of(control) == replace(RACE, train_videos=control.videos * RACE.train_videos)
        assert RACE.of(plain) == RACE
        assert Run(replace(control, clip=plain.clip), 0).recipe(RACE) == Run(plain, 0).recipe(RACE)


def test_twins_training_is_a_contestant_of_its_own() -> None:
    plain, twins = named("stm"), named("stm-twins")
    one, other = Run(plain, 1).recipe(RACE).to_dict(), Run(twins, 1).recipe(RACE).to_dict()
    assert {name: value for name, value in other.items() if value != one[name]} == {
        "objective": "twins",
        "colour_jitter": 0.4,
        "grey": 0.2,
        "scales": [1.0, 0.875],
    }
    assert (RACE.of(twins), twins.cost_of, twins.base) == (RACE, "stm", "stm-twins")
    assert [run.name for run in planned(Systems(seeds=2, systems=("stm-twins",)))] == ["stm-twins-0", "stm-twins-1"]


def test_the_same_network_on_the_same_clip_is_timed_once() -> None:
    assert {name: named(name).cost_of for name in ("tsm", "tsm-more", "pan-lite", "stm-twins", "da-tsm-more")} == {
        "tsm": "tsm",
        "tsm-more": "tsm",
        "pan-lite": "pan-lite",
        "stm-twins": "stm",
        "da-tsm-more": "da-tsm",
    }


def test_first_seeds_come_first_and_controls_once() -> None:
    names = [run.name for run in planned(Systems(seeds=2, systems=("tsn", "tsm-more", "da-tsm")))]
    assert names == ["tsn-0", "tsm-more-0", "da-tsm-0", "tsn-1", "da-tsm-1"]


def test_the_command_line_says_the_recipe() -> None:
    for system in SYSTEMS:
        run = Run(system, 2)
        wanted = run.recipe(RACE)
        command = run.training(RACE, Path("work")).command("--resume")
        train, recipe = command[3:5]
        assert (train, recipe) == ("train", f"{system.model}/moving-shapes")
        read = tyro.cli(TrainArgs, args=command[5:], default=TrainArgs(data=Path("x"), recipe=find_recipe(recipe)))
        assert read.recipe == wanted
        home = Path(f"work/{48 * system.videos}-and-24-videos-of-16-frames")
        assert (read.data, read.val_data) == (home / "videos/train.index.jsonl", home / "videos/val.index.jsonl")
        assert (read.out, read.resume) == (home / "3-epochs-fp32" / run.name, True)


def test_options_of_every_kind() -> None:
    assert training_runs.option("partial_bn", True) == ["--partial-bn"]
    assert training_runs.option("partial_bn", False) == ["--no-partial-bn"]
    assert training_runs.option("steps", [3, 5]) == ["--steps", "3", "5"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"systems": ("tsn", "slowfast")}, "'slowfast'.*tsn.*stm"),
        ({"seeds": 0, "jobs": -1}, "seeds is 0.*jobs is -1"),
        ({"val_videos": 0}, "val_videos is 0"),
        ({"systems": ()}, "no system"),
        ({"out": Path("runs/page.html")}, "page.html; it must end in .json"),
    ],
)
def test_what_cannot_be_run_is_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(FlowlessError, match=told):
        Systems(**fields)


def rows() -> list[dict[str, Any]]:
    """Return rows as measured: TSN blind, STM seeing, TSM in between."""
    tsn, stm, tsm = named("tsn"), named("stm"), named("tsm")
    results: dict[Run, dict[str, Any]] = {}
    for run, top1 in (
        (Run(tsn, 0), 0.4),
        (Run(stm, 0), 0.98),
        (Run(stm, 1), 0.96),
        (Run(tsm, 0), 0.5),
    ):
        # Epochs before the last one do not count, however good.
        history = [{"val_top1": 1.0, "train_top1": 1.0, "seconds": 1.0}, {"val_top1": top1, "train_top1": 0.7, "seconds": 2.0}]
        results[run] = {"history": history}
    pairs = {"right / left": 0.9, "grow / shrink": 0.55}
    cost = {
        "clip": [8, 1, 48, 48, 3],
        "parameters": 720_000,
        "macs": 99_000_000,
        "latency_ms": 2.5,
        "target": "openvino",
    }
    return [{**_row(system, results, pairs), **cost} for system in (tsn, stm, tsm)]


def test_rows_and_goals_are_of_the_last_epoch() -> None:
    tsn, stm, tsm = rows()
    assert (stm["top1"], stm["seeds"]) == (0.97, [0.98, 0.96])
    assert tsn["spread"] is None, "one seed has none"
    assert stm["spread"] == pytest.approx(0.0141, abs=1e-4)
    control = {**stm, "system": "stm-more", "control": True}
    assert [goal["met"] for goal in _goals([tsn, stm, control, tsm])] == [True, True, False], "a control has no goal"


def test_the_picture_names_every_system_once() -> None:
    assert set(COLOURS) == {system.base for system in SYSTEMS}
    drawn = accuracy_over_cost(rows(), blind=0.5)
    assert drawn.count(">stm<") == 1
    assert "on more videos" not in drawn
    more = {**rows()[1], "system": "stm-more", "control": True}
    assert "on more videos" in accuracy_over_cost([*rows(), more], blind=0.5)


def test_tables_tell_means_and_spreads() -> None:
    document = {"settings": {"train_videos": 48, "epochs": 2, "seeds": 2, "size": 48}, "systems": rows()}
    assert table(document).row_count == 3
    *_, tsn, stm, tsm = readme_lines(document)
    more = {**rows()[1], "system": "stm-more", "about": "a control", "control": True}
    assert readme_lines({**document, "systems": [*rows(), more]})[-1] == "`stm-more` is a control."
    assert tsn.startswith("| tsn | 8 × 1 | 40.0 (1 seed) | grow / shrink, 55 % | 0.72 | 99 | 2.5 | openvino |")
    assert stm.startswith("| stm | 8 × 1 | 97.0 ± 1.4 | grow / shrink, 55 % |")
    assert tsm.startswith("| tsm | 8 × 1 | 50.0 (1 seed) |")


def test_pairs_are_judged_on_the_videos_of_both() -> None:
    names = ("left", "right", "up", "down")
    labels = np.array([0, 0, 1, 1, 2])
    assert by_pair(np.array([0, 1, 1, 0, 2]), labels, names) == {"right / left": 0.5, "down / up": 1.0}


def test_other_epochs_and_validation_videos_are_kept_apart(tmp_path: Path) -> None:
    run = Run(named("tsn"), 0)
    races = (RACE, replace(RACE, epochs=4), replace(RACE, precision="bf16"), replace(RACE, val_videos=26), replace(RACE, frames=8))
    assert len({run.folder(race, tmp_path) for race in races}) == len(races)


def test_a_folder_that_is_trained_in_is_left_alone(tmp_path: Path) -> None:
    run = Run(named("tsn"), 0)
    folder = run.folder(RACE, tmp_path)
    folder.parent.mkdir(parents=True)
    with training_runs._alone(folder), pytest.raises(FlowlessError, match="another process trains"):
        systems_runs.train_all([run], RACE, work=tmp_path)


def test_nothing_so_far_is_told(tmp_path: Path) -> None:
    with pytest.raises(FlowlessError, match="nothing is trained yet"):
        main(["--out", str(tmp_path / "systems.json"), "--so-far"])


@pytest.mark.slow
def test_trained_counted_timed_and_never_twice(tmp_path: Path) -> None:
    out = tmp_path / "systems.json"
    small = ("--train-videos", "48", "--val-videos", "24", "--epochs", "1", "--seeds", "1")
    words = ["--out", str(out), "--systems", "tsn", *small, "--jobs", "1", "--json"]
    main(words)
    document = json.loads(out.read_text(encoding="utf-8"))
    (row,) = document["systems"]
    assert row["clip"] == [8, 1, 48, 48, 3]
    assert set(row["latencies"]) == {"openvino", "onnxruntime"}
    assert row["latency_ms"] == min(row["latencies"].values()) > 0
    result = json.loads(
        (tmp_path / "systems" / "48-and-24-videos-of-16-frames" / f"1-epochs-{quick_precision()}" / "tsn-0" / "result.json").read_text(
            encoding="utf-8"
        )
    )
    assert row["seeds"] == [round(result["history"][-1]["val_top1"], 4)]
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "src=" not in page
    assert f"{100 * row['top1']:.1f}" in page
    assert out.with_suffix(".svg").read_text(encoding="utf-8") in page
    kept = tmp_path / "systems" / "48-and-24-videos-of-16-frames" / f"1-epochs-{quick_precision()}" / "tsn-0" / "last.safetensors"
    written = kept.stat().st_mtime_ns
    # A result of its own adds a system to an earlier one: what clips cost is measured anew, in the same run for both.
    added = [*words[2:], "--out", str(tmp_path / "added.json"), "--systems", "tsm", "--earlier", str(out)]
    with pytest.raises(FlowlessError, match="epochs 1, here 2"):
        main([*added, "--epochs", "2"])
    main(added)
    tsn, tsm = json.loads((tmp_path / "added.json").read_text(encoding="utf-8"))["systems"]
    assert (tsn["seeds"], tsn["pairs"], tsn["environment"]) == (row["seeds"], row["pairs"], document["environment"])
    assert (tsn["system"], tsm["system"], tsn["macs"], tsn["clip"]) == ("tsn", "tsm", row["macs"], row["clip"])
    assert tsn["latencies"] != row["latencies"]
    assert "Trained in an earlier run: tsn" in (tmp_path / "added.html").read_text(encoding="utf-8")
    # What is not trained yet, is left out of what is so far.
    main([*words, "--systems", "tsn", "tsm", "--so-far"])
    assert [row["system"] for row in json.loads(out.read_text(encoding="utf-8"))["systems"]] == ["tsn"]
    assert kept.stat().st_mtime_ns == written


def test_a_failed_training_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unstopped = tmp_path / "unstopped"
    long = [sys.executable, "-c", f"import pathlib, time; time.sleep(60); pathlib.Path({str(unstopped)!r}).touch()"]
    runs = [Run(named("tsm"), 0), Run(named("tsn"), 0)]
    commands = {runs[0].name: long, runs[1].name: [sys.executable, "-c", "raise SystemExit('a bad day')"]}
    monkeypatch.setattr(Training, "command", lambda training, *_: commands[training.name])
    # The one that failed is told, and not the other, which comes first and was stopped for its sake.
    with pytest.raises(FlowlessError, match="training tsn-0 ended with 1: a bad day"):
        systems_runs.train_all(runs, replace(RACE, jobs=2), work=tmp_path)
    assert not unstopped.exists()


def test_a_training_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    tsn = named("tsn")
    with pytest.raises(FlowlessError, match=r"training tsn-0 ended with 1: .*index.*tsn-0\.log"):
        systems_runs.train_all([Run(tsn, 0)], RACE, work=tmp_path / "work")

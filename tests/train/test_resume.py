"""A run that was killed or stopped within an epoch is resumed and equals an uninterrupted one."""

from __future__ import annotations

import csv
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preloaded import Command

from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.interrupts import note_ctrl_c
from flowless.pipeline.loading.frame_source import FrameSource
from flowless.train.checkpoints import load_checkpoint
from flowless.train.loop.fit import fit
from flowless.train.loop.joint_training import JointTraining
from flowless.train.loop.training_module import TrainingModule
from flowless.train.recipes import find_recipe

FIELDS = {"segments": 4, "frames_per_segment": 2, "size": 32, "short_side": 32, "batch_size": 4, "threads": 1, "blocks": 1, "width": 0.125}
#: Six batches per epoch; PAN-Lite takes a step after each, DA-TSM after two. They cover dropout, colour jitter and joint training.
RECIPES = {
    "pan-lite-r18": {"colour_jitter": 0.2, "validate_every": 2},
    "da-tsm-r18": {"batch_size": 8, "accumulate": 2, "optimiser": "sgd"},
}


class Killed(BaseException):
    """Raised in the place of SIGKILL; no code catches it."""


def small(model, **changes):
    return find_recipe(
        f"{model}/moving-shapes", **(FIELDS | RECIPES[model] | {"epochs": 2, "accelerator": "cpu", "keep_every": 0.0} | changes)
    )


@pytest.fixture(scope="module", params=RECIPES)
def whole(request, tmp_path_factory, train_index, val_index):
    """A model, its uninterrupted run, and the means that joint training reported."""
    with pytest.MonkeyPatch.context() as patch:
        means = note_means(patch)
        result = fit(small(request.param), index=train_index, val_index=val_index, out=tmp_path_factory.mktemp("whole") / "run")
    return request.param, result, means


def note_means(patch):
    real, found = JointTraining.means, []
    patch.setattr(JointTraining, "means", lambda self: found.append(real(self)) or found[-1])
    return found


def at_step(patch, epoch, batch, act):
    """Call `act` before a training step."""
    real = TrainingModule.training_step

    def step(self, given, batch_idx):
        if (self.current_epoch, batch_idx) == (epoch, batch):
            act()
        return real(self, given, batch_idx)

    patch.setattr(TrainingModule, "training_step", step)


def kill():
    raise Killed


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(stream)]


def same_weights(one: Path, other: Path) -> bool:
    values, others = (load_checkpoint(path).model.state_dict() for path in (one, other))
    return all(torch.equal(value, others[name]) for name, value in values.items())


def assert_same_run(folder: Path, wanted: Path) -> None:
    assert curve(folder) == curve(wanted)
    for name in ("last.safetensors", "best.safetensors"):
        assert same_weights(folder / name, wanted / name)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (0, 3), (0, 5), (1, 0), (1, 4)])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, whole, train_index, val_index, monkeypatch, epoch, batch):
    model, wanted, means = whole
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, epoch, batch, kill)
        fit(small(model), index=train_index, val_index=val_index, out=tmp_path / "run")
    # A step of DA-TSM is two batches; a batch of an unfinished step is lost.
    kept = batch - batch % small(model).accumulate
    if (epoch, kept) == (0, 0):
        assert not (tmp_path / "run" / "resume.ckpt").exists()
    drawn = []
    real = FrameSource.draw
    monkeypatch.setattr(FrameSource, "draw", lambda self, number, at: drawn.append((self._rule, at)) or real(self, number, at))
    again = note_means(monkeypatch)
    torch.manual_seed(99)
    fit(small(model), index=train_index, val_index=val_index, out=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", wanted.folder)
    # The batches before the resumed one are not decoded.
    assert drawn.count(("train", epoch)) == 24 - kept * 4
    assert again == means[-len(again) :]
    assert len(again) == (2 - epoch if model == "da-tsm-r18" else 0)


def test_by_default_the_state_is_saved_every_ten_minutes_and_every_epoch(tmp_path, train_index, monkeypatch):
    assert find_recipe("tsn-r50/kinetics400").keep_every == 10
    recipe = small("pan-lite-r18", keep_every=10.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, 1, 4, kill)
        fit(recipe, index=train_index, out=tmp_path / "run")
    state = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)
    assert "flowless_epoch" not in state
    clock = time.monotonic
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, 1, 2, lambda: patch.setattr(time, "monotonic", lambda: clock() + 601))
        at_step(patch, 1, 5, kill)
        fit(recipe, index=train_index, out=tmp_path / "run", resume=True)
    state = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)
    assert state["flowless_epoch"]["batches"] == 3


def test_seconds_of_an_epoch_include_those_before_a_resume(tmp_path, train_index, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, 0, 3, kill)
        fit(small("pan-lite-r18"), index=train_index, out=tmp_path / "run")
    path = tmp_path / "run" / "resume.ckpt"
    state = torch.load(path, weights_only=True)
    assert 0 < state["flowless_epoch"]["seconds"] < 600
    state["flowless_epoch"]["seconds"] += 1000
    torch.save(state, path)
    result = fit(small("pan-lite-r18"), index=train_index, out=tmp_path / "run", resume=True)
    assert result.rows[0]["seconds"] > 1000 > result.rows[1]["seconds"]
    assert result.seconds < 1000


def test_the_progress_bar_is_resumed(tmp_path, train_index, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, 1, 2, kill)
        fit(small("pan-lite-r18"), index=train_index, out=tmp_path / "run")
    bar = progress()
    monkeypatch.setattr("flowless.train.loop.progress_bar.progress", lambda: bar)
    begun = []
    real = bar.add_task
    monkeypatch.setattr(bar, "add_task", lambda *args, **fields: begun.append(fields) or real(*args, **fields))
    fit(small("pan-lite-r18"), index=train_index, out=tmp_path / "run", resume=True)
    assert begun == [{"total": 12, "completed": 8}]
    assert bar.tasks[0].completed == 12


def test_bad_videos_before_a_resume_are_listed(tmp_path, train_index, monkeypatch):
    (tmp_path / "bad.mp4").write_text("no video")
    videos = [replace(video, path=str(train_index.path_of(video))) for video in train_index.videos]
    # The first video of the only epoch: the resumed part does not read it again.
    first = first_shown(len(videos))
    videos[first] = replace(videos[first], path="bad.mp4")
    index = replace(train_index, root=tmp_path, videos=tuple(videos))
    recipe = small("pan-lite-r18", epochs=1, max_bad_share=0.2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, 0, 3, kill)
        fit(recipe, index=index, out=tmp_path / "run")
    result = fit(recipe, index=index, out=tmp_path / "run", resume=True)
    assert [Path(bad.path).name for bad in result.bad_videos] == ["bad.mp4"]


def first_shown(count: int) -> int:
    """Return the position in the index of the first video of epoch 0 with seed 0."""
    import numpy as np

    return int(np.random.default_rng([0, 0]).permutation(count)[0])


def test_a_state_of_an_earlier_version_is_resumed(tmp_path, train_index, monkeypatch):
    recipe = small("pan-lite-r18")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, 1, 0, kill)
        fit(recipe, index=train_index, out=tmp_path / "run")
    path = tmp_path / "run" / "resume.ckpt"
    state = torch.load(path, weights_only=True)
    del state["flowless_bad_videos"]
    torch.save(state, path)
    run = (tmp_path / "run" / "run.json").read_text()
    (tmp_path / "run" / "run.json").write_text(run.replace('    "keep_every": 0.0,\n', ""))
    result = fit(recipe, index=train_index, out=tmp_path / "run", resume=True)
    assert [row["epoch"] for row in result.rows] == [0, 1]


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_the_state(tmp_path, whole, train_index, val_index, monkeypatch, capfd):
    model, wanted, _ = whole
    with monkeypatch.context() as patch, note_ctrl_c(), pytest.raises(KeyboardInterrupt):
        at_step(patch, 0, 2, press)
        fit(small(model, keep_every=10.0), index=train_index, val_index=val_index, out=tmp_path / "run")
    printed = " ".join(capfd.readouterr().err.split())
    done = 3 if model == "pan-lite-r18" else 4
    assert "Ctrl-C again stops at once" in printed
    assert f"0 whole epochs and {done} batches of the next one are saved" in printed
    assert "--resume" in printed
    assert torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["flowless_epoch"]["batches"] == done
    fit(small(model, keep_every=10.0), index=train_index, val_index=val_index, out=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", wanted.folder)


def test_ctrl_c_in_validation_saves_the_epoch(tmp_path, train_index, val_index, monkeypatch, capfd):
    real = TrainingModule.validation_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingModule, "validation_step", lambda self, *given: press() or real(self, *given))
        at_step(patch, 1, 0, kill)
        fit(small("pan-lite-r18", batch_size=12, validate_every=1), index=train_index, val_index=val_index, out=tmp_path / "run")
    assert "1 whole epoch is saved" in " ".join(capfd.readouterr().err.split())


def test_ctrl_c_twice_stops_at_once(tmp_path, train_index, monkeypatch, capfd):
    def twice():
        press()
        press()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 0, 2, twice)
        fit(small("pan-lite-r18", keep_every=10.0), index=train_index, out=tmp_path / "run")
    printed = " ".join(capfd.readouterr().err.split())
    assert "nothing is saved yet. The same command with --resume starts" in printed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_killed_before_its_first_state_can_be_resumed_or_replaced(tmp_path, whole, train_index, val_index, monkeypatch):
    """--resume starts it, --overwrite replaces it; without either, the error names both."""
    model, wanted, _ = whole
    recipe = small(model, keep_every=10.0)
    for option in ({"resume": True}, {"overwrite": True}):
        out = tmp_path / next(iter(option))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            at_step(patch, 0, 2, kill)
            fit(recipe, index=train_index, val_index=val_index, out=out)
        with pytest.raises(FlowlessError, match=r"--resume.*--overwrite"):
            fit(recipe, index=train_index, val_index=val_index, out=out)
        fit(recipe, index=train_index, val_index=val_index, out=out, **option)
        assert_same_run(out, wanted.folder)
    with pytest.raises(FlowlessError, match=r"lr 0\.004 → 0\.2"):
        (out / "resume.ckpt").unlink()
        fit(replace(recipe, lr=0.2), index=train_index, out=out, resume=True)


def test_half_written_files_of_a_killed_run_are_removed(tmp_path, train_index):
    """A kill while run.json is written leaves a folder with the half-written file only; it counts as empty."""
    recipe = small("pan-lite-r18", epochs=1)
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.abcd1234.json").write_text('{"recipe"')
    fit(recipe, index=train_index, out=out)
    for name in (".resume.abcd1234.ckpt", ".last.zzzzzzzz.safetensors", ".notes.txt"):
        (out / name).write_text("half")
    fit(recipe, index=train_index, out=out, resume=True)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".notes.txt"]
    fit(recipe, index=train_index, out=out, overwrite=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in (".run.abcd1234.json", "mine.txt"):
        (foreign / name).write_text("mine")
    with pytest.raises(FlowlessError, match="holds files other than a run"):
        fit(recipe, index=train_index, out=foreign, overwrite=True)
    assert (foreign / ".run.abcd1234.json").exists()


@pytest.mark.slow
def test_a_run_killed_at_random_moments_equals_an_uninterrupted_one(tmp_path, whole, shapes):
    """With SIGKILL, at random times after a state was saved, four times."""
    model, wanted, _ = whole
    out = tmp_path / "run"
    fields = FIELDS | RECIPES[model] | {"epochs": 2, "accelerator": "cpu", "keep_every": 0.0}
    options = [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    data = ["--data", str(shapes / "train.index.jsonl"), "--val-data", str(shapes / "val.index.jsonl"), "--out", str(out)]
    chance = random.Random(model)
    kills = 0
    for number in range(8):
        before = written(out / "resume.ckpt")
        resume = ["--resume"] if (out / "run.json").exists() else []
        process = Command(["train", f"{model}/moving-shapes", *data, *options, *resume], tmp_path / f"run-{number}")
        if kills == 4:
            assert process.wait().returncode == 0
            break
        while process.poll() is None and written(out / "resume.ckpt") == before:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        done = process.wait()
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    assert kills > 1
    assert_same_run(out, wanted.folder)


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0

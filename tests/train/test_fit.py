"""Training on generated videos: the files of a run, and resuming it."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from preloaded import Command

from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.interrupts import note_ctrl_c
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.loading import frame_source
from flowless.train.checkpoints import load_checkpoint
from flowless.train.commands.train import train
from flowless.train.loop.fit import fit
from flowless.train.loop.index_checks import relabel
from flowless.train.loop.loaders import device_batch
from flowless.train.loop.save_callback import best_row
from flowless.train.loop.training_module import TrainingModule
from flowless.train.models import build_model
from flowless.train.recipes import find_recipe

FIELDS = {"segments": 4, "frames_per_segment": 2, "size": 32, "short_side": 32, "epochs": 3, "batch_size": 8, "threads": 1, "blocks": 1}


def small(name="pan-lite-r18/moving-shapes", **changes):
    return find_recipe(name, **(FIELDS | {"accelerator": "cpu"} | changes))


def train_args(recipe_name, shapes, out, **changes):
    fields = FIELDS | {"accelerator": "cpu"} | changes
    options = [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    data = ["--data", str(shapes / "train.index.jsonl"), "--val-data", str(shapes / "val.index.jsonl"), "--out", str(out)]
    return ["train", recipe_name, *data, *options]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train_index, val_index):
    """An uninterrupted run of three epochs."""
    return fit(small(), index=train_index, val_index=val_index, out=tmp_path_factory.mktemp("whole") / "run")


def curve(rows):
    return [tuple(row[name] for name in ("epoch", "train_loss", "train_top1", "val_loss", "val_top1", "lr")) for row in rows]


def test_files_of_a_run(whole, train_index):
    names = {path.name for path in whole.folder.iterdir()}
    assert names == {"best.safetensors", "last.safetensors", "metrics.csv", "result.json", "resume.ckpt", "run.json", "tensorboard"}
    assert list((whole.folder / "tensorboard").glob("events.out.tfevents*"))
    with (whole.folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["epoch", "train_loss", "train_top1", "val_loss", "val_top1", "lr", "seconds"]
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert float(rows[2]["train_loss"]) == pytest.approx(whole.rows[2]["train_loss"], rel=1e-5)
    last = load_checkpoint(whole.last)
    assert last.labels == train_index.labels
    assert last.recipe["name"] == "pan-lite-r18/moving-shapes"
    assert last.metrics["epoch"] == 2
    best = load_checkpoint(whole.best)
    assert best.metrics == best_row(whole.rows)
    assert json.loads((whole.folder / "result.json").read_text())["best_epoch"] == best.metrics["epoch"]


def test_training_changes_every_weight(whole):
    last = load_checkpoint(whole.last).model
    recipe = small()
    torch.manual_seed(recipe.seed)
    first = build_model(recipe.model, spec=last.spec, **last.config)
    # VAP's small network may be dead: it has only ReLU units. The bias of PA cancels.
    unchanged = [name for name, value in first.named_parameters() if torch.equal(value, last.get_parameter(name)) and "TES" not in name]
    assert unchanged == ["persistence.bias"]
    assert whole.rows[0]["lr"] != whole.rows[1]["lr"]


@pytest.mark.parametrize("stop", [1, 2])
def test_resuming_gives_the_same_curve(tmp_path, whole, train_index, val_index, monkeypatch, stop):
    class Killed(BaseException):
        pass

    real = TrainingModule.training_step

    def step(self, batch, batch_idx):
        if self.current_epoch == stop and batch_idx == 1:
            raise Killed
        return real(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", step)
    with pytest.raises(Killed):
        fit(small(), index=train_index, val_index=val_index, out=tmp_path / "run")
    monkeypatch.undo()
    torch.manual_seed(12345)
    resumed = fit(small(), index=train_index, val_index=val_index, out=tmp_path / "run", resume=True)
    for ours, wanted in zip(curve(resumed.rows), curve(whole.rows), strict=True):
        assert ours == pytest.approx(wanted, abs=1e-6)
    for name, value in load_checkpoint(resumed.last).model.state_dict().items():
        torch.testing.assert_close(value, load_checkpoint(whole.last).model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_resuming_a_finished_run_changes_nothing(tmp_path, train_index):
    recipe = small(epochs=1, dropout=0.0)
    first = fit(recipe, index=train_index, out=tmp_path / "run")
    weights = first.last.read_bytes()
    again = fit(recipe, index=train_index, out=tmp_path / "run", resume=True)
    assert curve(again.rows) == curve(first.rows)
    assert first.last.read_bytes() == weights
    assert again.best_top1 is None


def wait_for(path: Path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.wait()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_run_can_be_resumed(tmp_path, shapes, whole):
    out = tmp_path / "run"
    command = train_args("pan-lite-r18/moving-shapes", shapes, out)
    process = Command(command, tmp_path / "killed")
    wait_for(out / "resume.ckpt", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    done = Command([*command, "--resume", "--json"], tmp_path / "resumed").wait()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for ours, wanted in zip(curve(result["history"]), curve(whole.rows), strict=True):
        assert ours == pytest.approx(wanted, abs=1e-6)


@pytest.mark.slow
def test_ctrl_c_prints_how_to_resume(tmp_path, shapes):
    out = tmp_path / "run"
    command = train_args("tsn-r18/moving-shapes", shapes, out, epochs=200)
    process = Command(command, tmp_path / "stopped")
    wait_for(out / "resume.ckpt", process)
    process.send_signal(signal.SIGINT)
    done = process.wait(60)
    assert done.returncode == 130
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_ctrl_c_that_a_library_swallows_stops_training(tmp_path, train_index, monkeypatch, capsys):
    real, steps = TrainingModule.training_step, []

    def step(self, batch, batch_idx):
        steps.append(batch_idx)
        if len(steps) == 2:
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", step)
    with note_ctrl_c(), pytest.raises(KeyboardInterrupt):
        fit(small(), index=train_index, out=tmp_path / "run")
    assert len(steps) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_together(tmp_path, shapes):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "flowless", *train_args("pan-lite-r18/moving-shapes", shapes, out, epochs=1, devices=2, accumulate=2)]
    command += ["--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["history"]
    assert row["val_loss"] > 0
    load_checkpoint(out / "last.safetensors")


def environment_of(launcher: str, *, node: int, port: int) -> dict[str, str]:
    """Return the environment of a launcher for the only process of one of two nodes."""
    if launcher == "torchrun":
        # As torch.distributed.run sets them: local ranks begin at 0 on every node.
        names = {"RANK": node, "LOCAL_RANK": 0, "GROUP_RANK": node, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "TORCHELASTIC_RUN_ID": "test"}
    else:
        names = {"SLURM_PROCID": node, "SLURM_LOCALID": 0, "SLURM_NODEID": node, "SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 1}
        names |= {"SLURM_NNODES": 2, "SLURM_JOB_ID": 7, "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "training"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in (names | address | {"OMP_NUM_THREADS": 1}).items()}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_two_nodes_train_together(tmp_path, shapes, launcher):
    """The process of global rank 0 writes and prints; that of the other node, whose local rank is also 0, does not."""
    out = tmp_path / "run"
    command = [*train_args("tsn-r18/moving-shapes", shapes, out, epochs=1, num_nodes=2, devices=1), "--json"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [Command(command, tmp_path / f"node-{node}", environment_of(launcher, node=node, port=port)) for node in (1, 0)]
    second, first = (node.wait() for node in nodes)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr + first.stderr
    assert second.stdout == ""
    (row,) = json.loads(first.stdout)["history"]
    assert row["val_loss"] > 0
    load_checkpoint(out / "last.safetensors")


@pytest.mark.parametrize(("batch_size", "accumulate", "steps"), [(20, 4, 1), (15, 3, 2), (6, 3, 4), (8, 1, 3)])
def test_the_schedule_counts_the_steps_that_the_optimiser_takes(tmp_path, train_index, batch_size, accumulate, steps):
    """The last batches of an epoch end in a step even if they are fewer than `accumulate`."""
    recipe = small(batch_size=batch_size, accumulate=accumulate, epochs=2, schedule="cosine", warm_up=0.0)
    result = fit(recipe, index=train_index, out=tmp_path / "run")
    state = torch.load(result.folder / "resume.ckpt", weights_only=True)
    assert {int(value["step"]) for value in state["optimizer_states"][0]["state"].values()} == {2 * steps}
    for row in result.rows:
        assert row["lr"] == pytest.approx(recipe.rate_at(row["epoch"] + (steps - 1) / steps))


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16"}, {"accumulate": 2}, {"partial_bn": True}, {"label_smoothing": 0.1, "clip_gradient": 0}]
)
def test_training_with_options(tmp_path, train_index, changes):
    result = fit(small(epochs=1, **changes), index=train_index, out=tmp_path / "run")
    assert 0 < result.rows[0]["train_loss"] < 20


def test_partial_bn_freezes_nothing_from_scratch(tmp_path, train_index):
    """With running statistics it freezes: see test_initial_weights.py."""
    result = fit(small(epochs=1, partial_bn=True), index=train_index, out=tmp_path / "run")
    state = load_checkpoint(result.last).model.state_dict()
    for name in ("backbone.bn1", "backbone.layer4.0.bn2"):
        assert state[f"{name}.running_mean"].abs().max() > 0
    assert "backbone.layer4.1.bn2.running_mean" not in state, "the recipe has one block per stage"


@pytest.mark.parametrize("changes", [{"blocks": -1}, {"width": 0}, {"pretrained": True}], ids=str)
def test_a_model_that_cannot_be_built_leaves_no_folder(tmp_path, train_index, changes):
    with pytest.raises(FlowlessError):
        fit(small(**changes), index=train_index, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_progress_bar_counts_epochs(tmp_path, train_index, monkeypatch):
    bar, descriptions = progress(), []
    monkeypatch.setattr(bar, "update", lambda _, *, description: descriptions.append(description))
    monkeypatch.setattr("flowless.train.loop.progress_bar.progress", lambda: bar)
    fit(small(epochs=2), index=train_index, out=tmp_path / "run")
    assert descriptions == ["1 of 2 epochs", "2 of 2 epochs"]


def test_an_existing_folder_is_refused(tmp_path, train_index, whole):
    with pytest.raises(FlowlessError, match=r"--resume.*--overwrite"):
        fit(small(), index=train_index, out=whole.folder)
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(FlowlessError, match="holds files other than a run"):
        fit(small(), index=train_index, out=tmp_path, overwrite=True)
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_runs_that_cannot_be_resumed(tmp_path, whole, train_index, val_index):
    with pytest.raises(FlowlessError, match="no run to resume"):
        fit(small(), index=train_index, out=tmp_path, resume=True)
    with pytest.raises(FlowlessError, match=r"lr 0\.004 → 0\.2"):
        fit(small(lr=0.2), index=train_index, out=whole.folder, resume=True)
    with pytest.raises(FlowlessError, match=r"average logits, which its checkpoints store; here it is softmax.*evaluate --average softmax"):
        fit(small(average="softmax"), index=train_index, out=whole.folder, resume=True)
    fewer = replace(train_index, videos=train_index.videos[1:])
    with pytest.raises(FlowlessError, match=r"24 videos.*has 23"):
        fit(small(), index=fewer, out=whole.folder, resume=True)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("run.json", "resume.ckpt"):
        (copy / name).write_bytes((whole.folder / name).read_bytes()[: None if name == "run.json" else 1000])
    with pytest.raises(FlowlessError, match=r"resume\.ckpt: not a readable training state"):
        fit(small(), index=train_index, val_index=val_index, out=copy, resume=True)


def test_indexes_that_do_not_fit_are_refused(tmp_path, train_index, val_index):
    one = replace(train_index, videos=tuple(video for video in train_index.videos if video.label == 0))
    with pytest.raises(FlowlessError, match="1 label; training needs at least 2"):
        fit(small(), index=one, out=tmp_path / "a")
    with pytest.raises(FlowlessError, match="24 videos, fewer than batch_size, 64"):
        fit(small(batch_size=64), index=train_index, out=tmp_path / "b")
    foreign = replace(val_index, labels=("jumping", *val_index.labels[1:]))
    with pytest.raises(FlowlessError, match="'jumping'"):
        fit(small(), index=train_index, val_index=foreign, out=tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_the_command_sets_malloc_to_keep_freed_memory(tmp_path, shapes, monkeypatch):
    order = []

    def trained(*_, **__):
        order.append("trained")
        raise FlowlessError("enough")

    monkeypatch.setattr("flowless.train.commands.train.keep_freed_memory", lambda: order.append("kept"))
    monkeypatch.setattr("flowless.train.loop.fit.fit", trained)
    with pytest.raises(FlowlessError, match="enough"):
        train(["tsn-r18/tiny", "--data", str(shapes / "train.index.jsonl"), "--out", str(tmp_path / "run")])
    assert order == ["kept", "trained"]


def test_impossible_precision_and_devices_are_refused(tmp_path, train_index, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for changes, named in (
        ({"precision": "fp16"}, "precision is fp16"),
        ({"accelerator": "gpu"}, "no GPU"),
        ({"accelerator": "abacus"}, "'abacus'"),
        ({"devices": "two"}, "'two'"),
    ):
        with pytest.raises(FlowlessError, match=named):
            fit(small(**changes), index=train_index, out=tmp_path / "run")


def test_a_run_that_diverges_stops(tmp_path, train_index):
    with pytest.raises(FlowlessError, match="diverged"):
        fit(small(lr=1e30, clip_gradient=0, schedule="steps", epochs=20), index=train_index, out=tmp_path / "run")


def test_relabel_matches_labels_by_name(train_index):
    turned = DatasetIndex(root=train_index.root, labels=train_index.labels[::-1], videos=train_index.videos)
    found = relabel(turned, train_index.labels)
    for before, after in zip(turned.videos, found.videos, strict=True):
        assert turned.labels[before.label] == found.labels[after.label]


def test_batches_divide_among_devices():
    assert device_batch(small(batch_size=64, accumulate=2), 4) == 8
    with pytest.raises(FlowlessError, match="multiple of 3"):
        device_batch(small(batch_size=64), 3)


def test_bad_videos_are_listed(tmp_path, shapes, train_index):
    broken = tmp_path / "data"
    broken.mkdir()
    (broken / "bad.mp4").write_text("no video")
    first = train_index.videos[0]
    absolute = tuple(replace(video, path=str(train_index.path_of(video))) for video in train_index.videos[1:])
    index = replace(train_index, root=broken, videos=(replace(first, path="bad.mp4"), *absolute))
    result = fit(small(epochs=1, max_bad_share=0.2), index=index, out=tmp_path / "run")
    assert [Path(bad.path).name for bad in result.bad_videos] == ["bad.mp4"]
    assert json.loads((result.folder / "result.json").read_text())["bad_videos"][0]["path"].endswith("bad.mp4")
    with pytest.raises(FlowlessError, match=r"bad\.mp4|videos"):
        fit(small(epochs=1, max_bad_share=0.0), index=index, out=tmp_path / "other")


@pytest.mark.parametrize(("sampling", "rules"), [("segments", ("train", "centre")), ("consecutive", ("consecutive", "consecutive"))])
def test_training_and_validation_sample_clips_as_the_recipe_says(sampling, rules, tmp_path, train_index, val_index, monkeypatch):
    """The frames that the loader takes: consecutive ones where the recipe says so, from another start in every epoch."""
    taken = []
    real = frame_source.clip_indices

    def record(count, **options):
        found = real(count, **options)
        taken.append((options["rule"], found))
        return found

    monkeypatch.setattr(frame_source, "clip_indices", record)
    recipe = small(training_sampling=sampling, segments=2, frames_per_segment=4, epochs=2)
    fit(recipe, index=train_index, val_index=val_index, out=tmp_path / "run")
    assert {rule for rule, _ in taken} == set(rules)
    assert {len(clips) for _, clips in taken} == {1}
    together = [bool((np.diff(clips[0].reshape(-1)) == 1).all()) for _, clips in taken]
    assert all(together) == (sampling == "consecutive")
    assert len({int(clips[0, 0, 0]) for _, clips in taken}) > 3


def test_a_run_of_an_earlier_version_without_views_is_resumed(tmp_path, train_index):
    """The recipe of an older run lacks `average`, `test_views` and `training_sampling`; the default average of STM has changed since."""
    fields = {"stm_placement": "one-per-stage", "frames_per_segment": 1, "epochs": 1}
    recipe = small("stm-r18/moving-shapes", **fields)
    assert recipe.average == "softmax"
    run = fit(recipe, index=train_index, out=tmp_path / "run")
    description = run.folder / "run.json"
    document = json.loads(description.read_text())
    for name in ("average", "test_views", "training_sampling"):
        del document["recipe"][name]
    description.write_text(json.dumps(document))
    again = fit(recipe, index=train_index, out=run.folder, resume=True)
    assert curve(again.rows) == curve(run.rows)
    with pytest.raises(FlowlessError, match="training_sampling 'segments' → 'consecutive'"):
        fit(replace(recipe, training_sampling="consecutive"), index=train_index, out=run.folder, resume=True)

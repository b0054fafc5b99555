"""Two processes that train together: a failure in one stops both with the reason, and a killed run can be resumed."""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from preloaded import Command

from flowless.pipeline.dataset.index import DatasetIndex

FIELDS = {"segments": 4, "frames_per_segment": 1, "size": 32, "short_side": 32, "epochs": 2, "batch_size": 8, "threads": 1, "blocks": 1}
#: Seconds within which all processes must end, on a busy machine; one that hangs would wait for half an hour.
BOUND = 240


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(folder: Path, train: Path, val: Path | None, *more: str, **changes) -> list[Command]:
    """Start the two processes of one training, as torchrun starts them on two nodes."""
    fields = FIELDS | {"width": 0.125, "accelerator": "cpu", "num_nodes": 2, "devices": 1} | changes
    options = [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    data = ["--data", str(train), *(["--val-data", str(val)] if val else []), "--out", str(folder / "run")]
    port, names = free_port(), {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "TORCHELASTIC_RUN_ID": "test"}
    number = len(list(folder.glob("process-*")))
    processes = []
    for rank in (1, 0):
        own = names | {"RANK": rank, "GROUP_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {name: str(value) for name, value in own.items()}
        processes.append(
            Command(["train", "tsn-r18/moving-shapes", *data, *options, *more], folder / f"process-{number + rank}", environment)
        )
    return processes[::-1]


def ends(processes: list[Command]) -> list[str]:
    """Wait until all have ended with exit code 1 and without a traceback; return what each printed to standard error."""
    begin, printed = time.monotonic(), []
    for process in processes:
        done = process.wait(max(1, BOUND - (time.monotonic() - begin)))
        printed.append(" ".join(done.stderr.split()))
        assert done.returncode == 1, (done.returncode, printed)
        assert "Traceback" not in done.stderr
    return printed


def with_bad(index: DatasetIndex, place: int, folder: Path) -> Path:
    """Write a copy of an index in which the video at this position cannot be read."""
    (folder / "bad.mp4").write_text("no video")
    videos = [replace(video, path=str(index.path_of(video))) for video in index.videos]
    videos[place] = replace(videos[place], path="bad.mp4")
    path = folder / "bad.index.jsonl"
    replace(index, root=folder, videos=tuple(videos)).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "position"), [(1, 11), (0, 0)], ids=["second-in-its-last-batch", "first-in-its-first-batch"])
def test_a_failed_loader_stops_all_processes(tmp_path, shapes, train_index, rank, position):
    order = np.random.default_rng([0, 0]).permutation(len(train_index.videos))
    bad = with_bad(train_index, int(order[rank::2][position]), tmp_path)
    printed = ends(started(tmp_path, bad, shapes / "val.index.jsonl"))
    for text in printed:
        assert "videos cannot be read, more than the fraction 0.05" in text
    assert f"process {rank} of 2, counted from 0, failed: 1 of 24" in printed[1 - rank]
    assert "process" not in printed[rank].partition("cannot be read")[0]


@pytest.mark.slow
@pytest.mark.parametrize("position", [0, 5], ids=["in-its-first-batch", "in-its-last-batch"])
def test_a_failed_validation_stops_all_processes(tmp_path, shapes, val_index, position):
    bad = with_bad(val_index, 2 * position + 1, tmp_path)
    printed = ends(started(tmp_path, shapes / "train.index.jsonl", bad, batch_size=4))
    assert "process 1 of 2, counted from 0, failed: 1 of 12 videos cannot be read" in printed[0]
    assert "1 of 12 videos cannot be read" in printed[1]


@pytest.mark.slow
@pytest.mark.parametrize("keep_every", [0, 10], ids=["within-an-epoch", "at-its-end"])
def test_a_full_disk_stops_all_processes(tmp_path, shapes, keep_every):
    """The first process, which writes, is limited to files of 100 kB; the other reports its error."""
    processes = started(tmp_path, shapes / "train.index.jsonl", None, keep_every=keep_every)
    assert processes[0].pid is not None
    resource.prlimit(processes[0].pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    printed = ends(processes)
    assert "the disk is full" in printed[0]
    assert "process 0 of 2, counted from 0, failed:" in printed[1]
    assert "the disk is full" in printed[1]
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"resume.ckpt", "last.safetensors", "best.safetensors"}
    assert not [name for name in left if name.startswith(".")]


@pytest.mark.slow
def test_too_few_validation_videos_are_refused(tmp_path, shapes, val_index):
    path = tmp_path / "one.index.jsonl"
    one = replace(val_index.videos[0], path=str(val_index.path_of(val_index.videos[0])))
    replace(val_index, videos=(one,)).save(path)
    for text in ends(started(tmp_path, shapes / "train.index.jsonl", path)):
        assert "has 1 validation videos for 2 processes" in text


@pytest.mark.slow
def test_processes_started_by_lightning_stop_too(tmp_path, shapes, train_index):
    order = np.random.default_rng([0, 0]).permutation(len(train_index.videos))
    bad = with_bad(train_index, int(order[1::2][7]), tmp_path)
    options = [part for name, value in FIELDS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "flowless", "train", "tsn-r18/moving-shapes", "--data", str(bad), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *options, "--accelerator", "cpu", "--devices", "2"], capture_output=True, text=True, check=False, timeout=BOUND
    )
    assert done.returncode == 1, done.stderr
    assert "cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


NO_NUMBER = """
import sys, types
import torch, torch.distributed as dist
from flowless.errors import FlowlessError
from flowless.train.models import build_model
from flowless.train.loop.training_module import TrainingModule
from flowless.train.recipes import find_recipe
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:" + sys.argv[2], rank=rank, world_size=2)
recipe = find_recipe("tsn-r18/moving-shapes", blocks=1, width=0.125)
model = build_model("tsn-r18", classes=2, spec=recipe.spec, blocks=1, width=0.125)
module = TrainingModule(model, recipe, index=None, val_index=None)
module._trainer = types.SimpleNamespace(global_step=10, current_epoch=3)
module.on_before_optimizer_step(None)
module._sums["train"].loss = torch.tensor(float("nan") if rank == 1 else 1.0)
try:
    module.on_before_optimizer_step(None)
except FlowlessError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_nan_loss_in_one_process_stops_all():
    port = str(free_port())
    commands = [[sys.executable, "-c", NO_NUMBER, str(rank), port] for rank in range(2)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    first, second = (process.communicate(timeout=BOUND)[0] for process in processes)
    assert first.startswith("process 1 of 2, counted from 0, failed: epoch 3: the loss is NaN or infinite")
    assert second.startswith("epoch 3: the loss is NaN or infinite")


@pytest.mark.slow
def test_two_killed_processes_resume_to_the_same_curve(tmp_path, shapes):
    """The saved state has the sums of both processes, and each process draws its own random numbers."""
    train, val = shapes / "train.index.jsonl", shapes / "val.index.jsonl"
    curves = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        processes = started(folder, train, val, keep_every=0)
        if name == "killed":
            state = folder / "run" / "resume.ckpt"
            while not state.exists() and processes[0].poll() is None:
                time.sleep(0.005)
            for process in processes:
                process.send_signal(signal.SIGKILL)
            assert {process.wait().returncode for process in processes} == {-signal.SIGKILL}
            import torch

            assert torch.load(state, weights_only=True)["flowless_epoch"]["batches"] < 3
            processes = started(folder, train, val, "--resume", keep_every=0)
        for process in processes:
            done = process.wait()
            assert done.returncode == 0, done.stderr
        rows = (folder / "run" / "metrics.csv").read_text().splitlines()
        curves.append([row.rpartition(",")[0] for row in rows])
    assert curves[0] == curves[1]

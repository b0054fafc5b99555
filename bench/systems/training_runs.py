"""Training runs of a benchmark: one `flowless train` process each, several in parallel, each kept and resumable."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flowless.console import log, progress
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.train.recipes import Recipe, find_recipe

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run."""

    recipe: Recipe
    data: Path
    val_data: Path | None = None
    folder: Path
    """The run's folder; its name is the training's, such as pan-lite-0."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of the last epoch."""
        return self.folder / "last.safetensors"

    def kept(self) -> dict[str, Any]:
        """Return the content of its result.json if the folder holds a finished run of this recipe, else an empty dict."""
        return _read(self.folder / "result.json") if self.started() else {}

    def started(self) -> bool:
        """Return whether the run in its folder was started with an equivalent recipe."""
        document = _read(self.folder / "run.json")
        try:
            return not Recipe.from_dict(document["recipe"]).differences(self.recipe)
        except (KeyError, FlowlessError):
            return False

    def command(self, *args: str) -> list[str]:
        """Return the `flowless train` command line: the recipe's changed fields and `args`."""
        defaults = find_recipe(self.recipe.name).to_dict()
        fields = [arg for name, value in self.recipe.to_dict().items() if value != defaults[name] for arg in _option(name, value)]
        files = ["--data", str(self.data), *(["--val-data", str(self.val_data)] if self.val_data else []), "--out", str(self.folder)]
        return [sys.executable, "-m", "flowless", "train", self.recipe.name, *files, *args, *fields]


def train_all(trainings: Mapping[Key, Training], *, jobs: int | None = None) -> dict[Key, dict[str, Any]]:
    """Train what is not trained yet, in parallel on `jobs` cores, by default all; return each run's result.json.

    Each run has one core: small networks use two badly. Finished runs are not repeated; a stopped run resumes from its last saved step.

    Raises:
        FlowlessError: A training failed. The error holds the last line of its output; the log beside its folder holds all of it.
    """
    stop = threading.Event()
    with progress() as bar, ThreadPoolExecutor(jobs or usable_cores()) as pool:
        task = bar.add_task("training", total=len(trainings))

        def one(training: Training) -> dict[str, Any]:
            result = training.kept() or _train(training, stop)
            bar.advance(task)
            split = "val" if training.val_data else "train"
            top1 = f"{100 * result['history'][-1][f'{split}_top1']:.1f} %"
            log.print(f"{training.name}: {split} top-1 {top1}, {result['seconds']:.0f} s", style="dim", markup=False)
            return result

        futures = {key: pool.submit(one, training) for key, training in trainings.items()}
        try:
            # The first failure is the cause; runs that are terminated because of it fail later.
            for future in wait(futures.values(), return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            for future in futures.values():
                future.cancel()
            stop.set()
        return {key: future.result() for key, future in futures.items()}


def _train(training: Training, stop: threading.Event) -> dict[str, Any]:
    """Run one training until it ends; terminate it, which saves its state, when `stop` is set."""
    folder = training.folder
    output = folder.with_name(folder.name + ".log")
    output.parent.mkdir(parents=True, exist_ok=True)
    resume = "--resume" if training.started() and (folder / "resume.ckpt").is_file() else "--overwrite"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with _locked(folder) as handles, output.open("w", encoding="utf-8") as stream:
        child = subprocess.Popen(training.command(resume), stdout=stream, stderr=stream, pass_fds=handles, env=env)
        while child.poll() is None:
            if stop.wait(0.1):
                # (A background process of a script ignores SIGINT, and so do its children.)
                child.terminate()
                child.wait()
    if child.returncode:
        lines = output.read_text(encoding="utf-8").strip().splitlines() or ["no output"]
        raise FlowlessError(f"training {training.name} ended with {child.returncode}: {lines[-1]} (all of its output: {output})")
    return _read(folder / "result.json")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[tuple[int, ...]]:
    """Lock a run's folder, where the system has file locks; yield the descriptors that the training inherits, since it may live longer."""
    try:
        import fcntl
    except ModuleNotFoundError:
        yield ()
        return
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FlowlessError(f"another process trains {folder}. Wait for it, or stop it.") from error
        yield (lock.fileno(),)


def _option(name: str, value: Any) -> list[str]:
    """Return a recipe field as an option of `flowless train`."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, *map(str, value)] if isinstance(value, list) else [flag, str(value)]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

"""Trainings of a bench: one `flowless train` process each, several side by side, each kept and resumable."""

from __future__ import annotations

import contextlib
import json
import os
import signal
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
    """One training: by which recipe, on which videos, kept where."""

    recipe: Recipe
    """Its name is that of the recipe whose fields it changes."""
    data: Path
    """Index of the training videos."""
    val_data: Path | None = None
    """Index of the validation videos, where there are any."""
    folder: Path
    """The run's folder; its name is the training's."""

    @property
    def name(self) -> str:
        """What messages call it: its folder's name, such as pan-lite-0."""
        return self.folder.name

    def kept(self) -> dict[str, Any]:
        """Return the content of its result.json where it was trained by this very recipe, else nothing."""
        return _read(self.folder / "result.json") if self.started() else {}

    def started(self) -> bool:
        """Return whether the run in its folder was begun by a recipe that trains as this one does."""
        document = _read(self.folder / "run.json")
        try:
            return not Recipe.from_dict(document["recipe"]).differences(self.recipe)
        except (KeyError, FlowlessError):
            return False

    def command(self, *words: str) -> list[str]:
        """Return `flowless train` with what the recipe changes of the named one, and more words."""
        defaults = find_recipe(self.recipe.name).to_dict()
        fields = [word for name, value in self.recipe.to_dict().items() if value != defaults[name] for word in option(name, value)]
        files = ["--data", str(self.data), *(["--val-data", str(self.val_data)] if self.val_data else []), "--out", str(self.folder)]
        return [sys.executable, "-m", "flowless", "train", self.recipe.name, *files, *words, *fields]


def option(name: str, value: Any) -> list[str]:
    """Return a recipe's field as `flowless train` takes it."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, *map(str, value)] if isinstance(value, list) else [flag, str(value)]


def train_all(trainings: Mapping[Key, Training], *, jobs: int | None = None) -> dict[Key, dict[str, Any]]:
    """Train what is not trained yet, `jobs` at once or as many as there are cores, one core each.

    Small networks use one core well and two badly. Runs that are whole are taken as they are, a run that was stopped goes on from
    its last kept step.

    Returns:
        Key -> the content of its result.json.

    Raises:
        FlowlessError: A training failed; the last line that it said is in the error, all of it in a log beside its folder.
    """
    processes = _Processes()
    with progress() as bar, ThreadPoolExecutor(jobs or usable_cores()) as pool:
        task = bar.add_task("training", total=len(trainings))

        def one(training: Training) -> dict[str, Any]:
            result = _trained(training, processes)
            bar.advance(task)
            last = result["history"][-1]
            top1 = f"top-1 {100 * last['val_top1']:.1f} %" if training.val_data else f"training top-1 {100 * last['train_top1']:.1f} %"
            log.print(f"{training.name}: {top1}, {result['seconds']:.0f} s", style="dim", markup=False)
            return result

        futures = {key: pool.submit(one, training) for key, training in trainings.items()}
        try:
            done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            # The one that failed by itself: those that are stopped for its sake fail after it.
            for future in done:
                future.result()
        finally:
            for future in futures.values():
                future.cancel()
            processes.stop()
        return {key: future.result() for key, future in futures.items()}


class _Processes:
    """The processes that train."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def call(self, command: list[str], *, said: Path, held: tuple[int, ...]) -> int:
        """Run a command on one core; return its exit code. What it says goes into the file `said`; it inherits the handles `held`."""
        with said.open("w", encoding="utf-8") as stream:
            with self._lock:
                if self._stopped:
                    return 128 + signal.SIGTERM
                child = subprocess.Popen(command, stdout=stream, stderr=stream, pass_fds=held, env=os.environ | {"OMP_NUM_THREADS": "1"})
                self._running.add(child)
            try:
                return child.wait()
            finally:
                with self._lock:
                    self._running.discard(child)

    def stop(self) -> None:
        """End all that run, which keep their state. No other is begun any more."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                # (In the background of a script a process ignores Ctrl-C's signal, and so do its children.)
                child.terminate()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[tuple[int, ...]]:
    """Let one process at a time train in a folder, where the system has file locks.

    The training inherits the lock, since it may outlive the command that began it.

    Raises:
        FlowlessError: Another one trains in it.
    """
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


def _trained(training: Training, processes: _Processes) -> dict[str, Any]:
    if result := training.kept():
        return result
    folder = training.folder
    said = folder.with_name(folder.name + ".log")
    said.parent.mkdir(parents=True, exist_ok=True)
    go_on = "--resume" if training.started() and (folder / "resume.ckpt").is_file() else "--overwrite"
    with _alone(folder) as held:
        code = processes.call(training.command(go_on), said=said, held=held)
    if code:
        lines = said.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"]
        raise FlowlessError(f"training {training.name} ended with {code}: {lines[-1]} (all that it said: {said})")
    return _read(folder / "result.json")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

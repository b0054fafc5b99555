"""Training runs of a benchmark: one `flowless train` process each, several in parallel, each kept and resumable."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowless.console import log, progress
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.train.recipes import Recipe, find_recipe


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run."""

    recipe: Recipe
    data: Path
    folder: Path
    """The run's folder; its name is the training's, such as pan-lite-0."""

    def kept(self) -> dict[str, Any]:
        """Return the content of its result.json if the folder holds a finished run of this recipe, else an empty dict."""
        return _read(self.folder / "result.json") if self.started() else {}

    def started(self) -> bool:
        """Return whether the run in its folder was started with an equivalent recipe."""
        try:
            return not Recipe.from_dict(_read(self.folder / "run.json")["recipe"]).differences(self.recipe)
        except (KeyError, FlowlessError):
            return False

    def command(self, *args: str) -> list[str]:
        """Return the `flowless train` command line: the recipe's changed fields and `args`."""
        command = [sys.executable, "-m", "flowless", "train", self.recipe.name, "--data", str(self.data), "--out", str(self.folder), *args]
        defaults = find_recipe(self.recipe.name).to_dict()
        for name, value in self.recipe.to_dict().items():
            if value != defaults[name]:
                values = [] if isinstance(value, bool) else map(str, value if isinstance(value, list) else [value])
                command += [f"--{'no-' if value is False else ''}{name.replace('_', '-')}", *values]
        return command


def train_all(trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """Train what is not trained yet, one run a core, since small networks use two cores badly; return each run's result.json.

    Finished runs are not repeated; a stopped run resumes from its last saved step. Where one fails, all stop, and its last line is raised.
    """
    stop = threading.Event()
    with progress() as bar, ThreadPoolExecutor(usable_cores()) as pool:
        task = bar.add_task("training", total=len(trainings))

        def one(training: Training) -> dict[str, Any]:
            result = training.kept() or _train(training, stop)
            bar.advance(task)
            log.print(f"{training.folder.name}: trained in {result['seconds']:.0f} s", style="dim", markup=False)
            return result

        futures = [pool.submit(one, training) for training in trainings]
        try:
            # The first failure is the cause; runs that are terminated because of it fail later.
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            for future in futures:
                future.cancel()
            stop.set()
        return [future.result() for future in futures]


def _train(training: Training, stop: threading.Event) -> dict[str, Any]:
    """Run one training until it ends, unless another process trains in its folder; terminate it, which saves its state, by `stop`."""
    folder = training.folder
    output = folder.with_name(folder.name + ".log")
    output.parent.mkdir(parents=True, exist_ok=True)
    resume = "--resume" if training.started() and (folder / "resume.ckpt").is_file() else "--overwrite"
    with output.open("a", encoding="utf-8") as stream:
        try:
            # The training inherits the lock with its output: it may outlive this command.
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FlowlessError(f"{folder}: another process trains there. Wait for it, or stop it.") from error
        stream.truncate(0)
        child = subprocess.Popen(training.command(resume), stdout=stream, stderr=stream, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while child.poll() is None:
            if stop.wait(0.1):
                # (A background process of a script ignores SIGINT, and so do its children.)
                child.terminate()
                child.wait()
    if child.returncode:
        lines = output.read_text(encoding="utf-8").strip().splitlines() or ["no output"]
        raise FlowlessError(f"training {folder.name} ended with {child.returncode}: {lines[-1]} (all of its output: {output})")
    return _read(folder / "result.json")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

"""The training runs behind `flowless bench systems`: one process a run, several side by side, each kept and resumable."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flowless.bench.contestants import System
from flowless.console import log, progress
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.synthetic.moving_shapes import MARK, ShapesOptions, generate
from flowless.train.recipes import Recipe, find_recipe


@dataclass(frozen=True, kw_only=True)
class Race:
    """What is the same for all."""

    train_videos: int
    val_videos: int
    frames: int
    epochs: int
    seeds: int
    precision: str
    jobs: int | None = None

    def home(self, work: Path) -> Path:
        """Return the folder of these videos and of all that was trained on them."""
        return work / f"{self.train_videos}-and-{self.val_videos}-videos-of-{self.frames}-frames"

    def of(self, system: System) -> Race:
        """Return a system's own conditions: a control gets more videos."""
        return replace(self, train_videos=self.train_videos * system.videos)

    @property
    def shapes(self) -> ShapesOptions:
        """The videos that all learn."""
        return ShapesOptions(frames=self.frames, train_videos=self.train_videos, val_videos=self.val_videos)


@dataclass(frozen=True)
class Run:
    """One training: a system, a seed."""

    system: System
    seed: int

    @property
    def name(self) -> str:
        """The run's folder, such as pan-lite-0."""
        return f"{self.system.name}-{self.seed}"

    def recipe(self, race: Race) -> Recipe:
        """Return what it is trained by: Moving Shapes' recipe of the model, under the race's conditions."""
        same: dict[str, Any] = {"epochs": race.epochs, "precision": race.precision, "validate_every": race.epochs, "threads": 1}
        own = {"seed": self.seed, "objective": self.system.objective, **dict(self.system.clip)}
        return find_recipe(f"{self.system.model}/moving-shapes", **same, **own)

    def folder(self, race: Race, work: Path) -> Path:
        """Return where it is kept, apart from runs of other videos, epochs or arithmetic."""
        return race.of(self.system).home(work) / f"{race.epochs}-epochs-{race.precision}" / self.name

    def kept(self, race: Race, work: Path) -> dict[str, Any]:
        """Return the content of its result.json where it was trained under these very conditions, else nothing."""
        folder = self.folder(race, work)
        return _read(folder / "result.json") if _goes_on(folder, self.recipe(race)) else {}


def videos(race: Race, work: Path) -> Path:
    """Generate the videos, unless they are there already; return their folder."""
    folder = race.home(work) / "videos"
    mark = folder / MARK
    if not (mark.is_file() and json.loads(mark.read_text(encoding="utf-8"))["options"] == asdict(race.shapes)):
        generate(folder, options=race.shapes)
    return folder


def train_all(runs: Iterable[Run], race: Race, *, work: Path) -> dict[Run, dict[str, Any]]:
    """Train what is not trained yet, as many at once as there are cores, one core each.

    Small networks use one core well and two badly. Runs that are whole are taken as they are, a run that was stopped goes on from
    its last step.

    Returns:
        Run -> the content of its result.json.

    Raises:
        FlowlessError: A training failed; the last line that it said is in the error, all of it in a log beside its folder.
    """
    runs, trainings = list(runs), _Trainings()
    with progress() as bar, ThreadPoolExecutor(race.jobs or usable_cores()) as pool:
        task = bar.add_task("training", total=len(runs))

        def one(run: Run) -> dict[str, Any]:
            result = _trained(run, race, trainings, work=work)
            bar.advance(task)
            top1 = result["history"][-1]["val_top1"]
            log.print(f"{run.name}: top-1 {100 * top1:.1f} %, {result['seconds']:.0f} s", style="dim", markup=False)
            return result

        futures = {run: pool.submit(one, run) for run in runs}
        try:
            done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            # The one that failed by itself: those that are stopped for its sake fail after it.
            for future in done:
                future.result()
        finally:
            for future in futures.values():
                future.cancel()
            trainings.stop()
        return {run: future.result() for run, future in futures.items()}


class _Trainings:
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
            raise FlowlessError(f"bench systems: another process trains {folder}. Wait for it, or stop it.") from error
        yield (lock.fileno(),)


def _trained(run: Run, race: Race, trainings: _Trainings, *, work: Path) -> dict[str, Any]:
    if result := run.kept(race, work):
        return result
    folder, recipe = run.folder(race, work), run.recipe(race)
    said = folder.with_name(folder.name + ".log")
    said.parent.mkdir(parents=True, exist_ok=True)
    go_on = "--resume" if _goes_on(folder, recipe) and (folder / "resume.ckpt").is_file() else "--overwrite"
    with _alone(folder) as held:
        code = trainings.call(_command(run, recipe, [go_on], race=race, work=work), said=said, held=held)
    if code:
        lines = said.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"]
        raise FlowlessError(f"bench systems: training {run.name} ended with {code}: {lines[-1]} (all that it said: {said})")
    return _read(folder / "result.json")


def _goes_on(folder: Path, recipe: Recipe) -> bool:
    """Tell whether the run in a folder is a training by this recipe."""
    started = _started_with(folder)
    return started is not None and not started.differences(recipe)


def _started_with(folder: Path) -> Recipe | None:
    """Return the recipe of the run in a folder; what it does not say, an older flowless did not know and did as is the default."""
    document = _read(folder / "run.json")
    try:
        return Recipe.from_dict(document["recipe"])
    except (KeyError, FlowlessError):
        return None


def _command(run: Run, recipe: Recipe, words: list[str], *, race: Race, work: Path) -> list[str]:
    """Return `flowless train` with what the recipe changes of the model's own."""
    defaults = find_recipe(f"{run.system.model}/moving-shapes").to_dict()
    fields = [word for name, value in recipe.to_dict().items() if value != defaults[name] for word in _words(name, value)]
    shapes, folder = race.of(run.system).home(work) / "videos", run.folder(race, work)
    files = ["--data", str(shapes / "train.index.jsonl"), "--val-data", str(shapes / "val.index.jsonl"), "--out", str(folder)]
    return [sys.executable, "-m", "flowless", "train", f"{run.system.model}/moving-shapes", *files, *words, *fields]


def _words(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, *map(str, value)] if isinstance(value, list) else [flag, str(value)]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

"""The training runs behind `flowless bench systems`: one process a run, several side by side, each kept and resumable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flowless.console import log, progress
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.moving_shapes import MARK, ShapesOptions, generate
from flowless.train.recipes import Recipe, find_recipe


@dataclass(frozen=True)
class System:
    """A contestant: the recipe that it is trained by, and what that recipe does not take from its name."""

    name: str
    model: str
    twins: bool
    """Whether Twins Training applies: one loss on scores. What has a loss of its own besides (DA) or one a branch is left out."""
    about: str
    changes: tuple[tuple[str, Any], ...] = ()
    longer: int = 1
    """A control is trained so many times as long as the others, once."""

    @property
    def control(self) -> bool:
        """Whether it explains another's result, and is no contestant."""
        return self.longer > 1


@dataclass(frozen=True, kw_only=True)
class Race:
    """What is the same for all."""

    train_videos: int
    val_videos: int
    frames: int
    epochs: int
    segments: int
    seeds: int
    precision: str
    jobs: int | None = None

    @property
    def name(self) -> str:
        """Names the videos: runs on other videos are kept apart by it."""
        return f"{self.train_videos}-videos-of-{self.frames}-frames"

    @property
    def shapes(self) -> ShapesOptions:
        """The videos that all learn."""
        return ShapesOptions(frames=self.frames, train_videos=self.train_videos, val_videos=self.val_videos)


@dataclass(frozen=True)
class Run:
    """One training: a system, an objective, a seed."""

    system: System
    objective: str
    seed: int

    @property
    def name(self) -> str:
        """The run's folder, such as pan-lite-twins-0."""
        return f"{self.system.name}{'-twins' if self.objective == 'twins' else ''}-{self.seed}"

    def recipe(self, race: Race) -> Recipe:
        """Return what it is trained by: Moving Shapes' recipe of the model, under the race's conditions."""
        found = find_recipe(
            f"{self.system.model}/moving-shapes", epochs=race.epochs * self.system.longer, seed=self.seed, objective=self.objective
        )
        same: dict[str, Any] = {"segments": race.segments, "precision": race.precision, "validate_every": race.epochs, "threads": 1}
        return replace(found, **{**same, **dict(self.system.changes)})


def videos(race: Race, folder: Path) -> Path:
    """Generate the videos, unless the folder holds these very ones; return the folder."""
    mark = folder / MARK
    if not (mark.is_file() and json.loads(mark.read_text(encoding="utf-8"))["options"] == asdict(race.shapes)):
        generate(folder, options=race.shapes)
    return folder


def train_all(runs: Iterable[Run], race: Race, *, shapes: Path, work: Path) -> dict[Run, dict[str, Any]]:
    """Train what is not trained yet, as many at once as there are cores, one core each.

    Small networks use one core well and two badly. Runs that are whole are taken as they are, a run that was stopped goes on from
    its last whole epoch.

    Returns:
        Run -> the content of its result.json.

    Raises:
        FlowlessError: A training failed; the last line that it said is in the error, all of it in `work/NAME.log`.
    """
    runs = list(runs)
    with progress() as bar, ThreadPoolExecutor(race.jobs or usable_cores()) as pool:
        task = bar.add_task("training", total=len(runs))

        def one(run: Run) -> dict[str, Any]:
            result = _trained(run, race, shapes=shapes, work=work)
            bar.advance(task)
            top1 = result["history"][-1]["val_top1"]
            log.print(f"{run.name}: top-1 {100 * top1:.1f} %, {result['seconds']:.0f} s", style="dim", markup=False)
            return result

        futures = {run: pool.submit(one, run) for run in runs}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:
            for future in futures.values():
                future.cancel()
        return {run: future.result() for run, future in futures.items() if not future.cancelled()}


def _trained(run: Run, race: Race, *, shapes: Path, work: Path) -> dict[str, Any]:
    folder, recipe = work / run.name, run.recipe(race)
    same = _started_with(folder) == recipe
    result = _read(folder / "result.json")
    if same and result:
        return result
    go_on = "--resume" if same and (folder / "resume.ckpt").is_file() else "--overwrite"
    _call(run, recipe, [go_on], shapes=shapes, folder=folder)
    return _read(folder / "result.json")


def _started_with(folder: Path) -> Recipe | None:
    """Return the recipe of the run in a folder; what it does not say, an older flowless did not know and did as is the default."""
    document = _read(folder / "run.json")
    try:
        return Recipe.from_dict(document["recipe"])
    except (KeyError, FlowlessError):
        return None


def _call(run: Run, recipe: Recipe, words: list[str], *, shapes: Path, folder: Path) -> None:
    """Run `flowless train` in a process of its own, on one core; leave what it said in `folder.log`."""
    defaults = find_recipe(f"{run.system.model}/moving-shapes").to_dict()
    fields = [word for name, value in recipe.to_dict().items() if value != defaults[name] for word in _words(name, value)]
    files = ["--data", str(shapes / "train.index.jsonl"), "--val-data", str(shapes / "val.index.jsonl"), "--out", str(folder)]
    command = [sys.executable, "-m", "flowless", "train", f"{run.system.model}/moving-shapes", *files, *words, *fields]
    said = folder.with_name(folder.name + ".log")
    said.parent.mkdir(parents=True, exist_ok=True)
    with said.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, stdout=stream, stderr=stream, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode
    if code:
        lines = said.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"]
        raise FlowlessError(f"bench systems: training {run.name} ended with {code}: {lines[-1]} (all that it said: {said})")


def _words(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, *map(str, value)] if isinstance(value, list) else [flag, str(value)]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

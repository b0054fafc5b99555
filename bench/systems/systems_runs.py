"""The training runs behind `flowless bench systems`: the same conditions for all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flowless.bench.lib import training_runs
from flowless.bench.lib.training_runs import Training
from flowless.bench.systems.systems_config import SYSTEMS, System
from flowless.errors import FlowlessError
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.synthetic.moving_shapes import MARK, SPLITS, ShapesOptions, generate
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

    def training(self, race: Race, work: Path) -> Training:
        """Return what is run for it."""
        shapes = race.of(self.system).home(work) / "videos"
        files = {"data": shapes / "train.index.jsonl", "val_data": shapes / "val.index.jsonl"}
        return Training(recipe=self.recipe(race), folder=self.folder(race, work), **files)


def videos(race: Race, work: Path) -> Path:
    """Generate the videos, unless they are there already; return their folder."""
    folder = race.home(work) / "videos"
    if not _are_there(folder, race.shapes):
        generate(folder, options=race.shapes)
    return folder


def _are_there(folder: Path, options: ShapesOptions) -> bool:
    mark = folder / MARK
    if not (mark.is_file() and json.loads(mark.read_text(encoding="utf-8"))["options"] == asdict(options)):
        return False
    try:
        for split in SPLITS:
            DatasetIndex.load(folder / f"{split}.index.jsonl")
    except FlowlessError:  # an earlier version's index
        return False
    return True


def train_all(runs: Iterable[Run], race: Race, *, work: Path) -> dict[Run, dict[str, Any]]:
    """Train what is not trained yet; return each run's result.json. See `training_runs.train_all`."""
    return training_runs.train_all({run: run.training(race, work) for run in runs}, jobs=race.jobs)


def untrained(name: str, race: Race, work: Path, *, labels: tuple[str, ...]) -> Path:
    """Write a checkpoint of a system's network with its first weights, as its training begins; return its file."""
    from flowless.train.checkpoints import save_checkpoint
    from flowless.train.models import build_model

    run = Run(next(system for system in SYSTEMS if system.name == name), 0)
    recipe = run.recipe(race)
    parts = {"width": recipe.width, "blocks": recipe.blocks, "dropout": recipe.dropout, **recipe.options.model_options}
    model = build_model(recipe.model, classes=len(labels), spec=recipe.spec, **parts)
    path = run.folder(race, work).with_name(f"{name}-untrained") / "last.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_checkpoint(path, model, model_name=recipe.model, recipe=recipe.to_dict(), spec=recipe.spec, labels=labels, metrics={})

"""`flowless bench systems`: the four systems and their baselines, trained alike from scratch; accuracy beside cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowless.bench.lib.goals import goal
from flowless.bench.systems.comparison import Comparison, run
from flowless.bench.systems.system_list import BLIND, SYSTEMS
from flowless.bench.systems.training_runs import Training
from flowless.errors import FlowlessError
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.synthetic.moving_shapes import MARK, PAIRS, SPLITS, ShapesOptions, generate
from flowless.train.recipes import find_recipe

#: The top-1 that every system has to reach, and the most that one blind to the order of frames can reach.
WANTED, BLIND_LIMIT = 0.95, 0.5


@dataclass(frozen=True, kw_only=True)
class Systems(Comparison):
    """Train every system alike on Moving Shapes, from scratch, with a small backbone, and put accuracy beside cost.

    Each action of Moving Shapes is the time-reversal of another one, so a model that ignores the order of frames is right half of the
    time at most. Every system gets the same videos, epochs, batches, optimiser and rate. Each run is kept in the folder named like OUT:
    the same command again resumes what was stopped, and trains nothing twice. stm-twins is stm by Twins Training, with its augmentation.
    Controls, called -more, are a system trained once on four times as many videos: they show whether it cannot learn this, or has not
    yet. With --earlier, the cost of a clip is measured anew for all systems.

    Writes OUT (JSON), and a page and its plot beside it: top-1 over the seeds, the action that is most often confused with its reversal,
    parameters, multiplications of a clip, and the latency of a clip on the fastest of this machine's processor targets.
    """

    benchmark = "systems"
    known = tuple(SYSTEMS)

    out: Path = Path("runs/bench/systems.json")
    systems: tuple[str, ...] = tuple(SYSTEMS)
    epochs: int = 6
    train_videos: int = 4800
    """Training videos; half of them are reversals."""
    val_videos: int = 480
    """Validation videos; half of them are reversals."""
    frames: int = 16
    """Frames of a video: the fewer, the faster the motion."""

    def conditions(self) -> dict[str, Any]:
        """Return what an earlier result must share."""
        from flowless.bench.systems import engine_cost  # noqa: F401 - a missing library is reported before the training

        names = ("train_videos", "val_videos", "frames", "epochs", "seeds", "precision", "jobs")
        return {**{name: getattr(self, name) for name in names}, "size": ShapesOptions.size, "blind_to_order": BLIND_LIMIT}

    def training(self, system: str, seed: int) -> Training:
        """Return one training: the recipe of its model for Moving Shapes, under the conditions that are the same for all."""
        one, (folder, _) = SYSTEMS[system], self._shapes(system)
        same: dict[str, Any] = {"epochs": self.epochs, "precision": self.precision, "validate_every": self.epochs, "threads": 1}
        recipe = find_recipe(f"{one.model}/moving-shapes", **same, **one.clip, seed=seed, objective=one.objective)
        data, val_data = (folder / "videos" / f"{split}.index.jsonl" for split in SPLITS)
        runs = folder / f"{self.epochs}-epochs-{self.precision}"
        return Training(recipe=recipe, data=data, val_data=val_data, folder=runs / f"{system}-{seed}")

    def test_videos(self, systems: Iterable[str]) -> DatasetIndex:
        """Generate the videos unless they are there already; return the validation index, the same for all systems."""
        indexes = [_generated(folder / "videos", options) for folder, options in dict(map(self._shapes, systems)).items()]
        return indexes[0]

    def pairs(self, labels: Sequence[str]) -> list[list[str]]:
        """Return each action and its reversal."""
        return [list(pair) for pair in PAIRS]

    def with_costs(self, rows: list[dict[str, Any]], test: DatasetIndex) -> list[dict[str, Any]]:
        """Return the rows with what a clip costs; systems of the same network and clip are measured once."""
        from flowless.bench.systems.engine_cost import measure_cost

        recipes = {SYSTEMS[row["system"]].cost_of: self.training(row["system"], 0).recipe for row in rows}
        videos = [test.path_of(video) for video in test.videos[:2]]
        costs = measure_cost(recipes, folder=self.work / "engines", videos=videos, labels=test.labels)
        return [{**row, **costs[SYSTEMS[row["system"]].cost_of]} for row in rows]

    def goals(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the goals beside what was measured; controls have none."""
        found = []
        for name, top1 in ((row["system"], row["top1"]) for row in rows if not row["control"]):
            blind = name == BLIND
            found.append(goal(f"{name}: top-1, mean of the seeds", BLIND_LIMIT if blind else WANTED, top1, at_most=blind))
        return found

    def _shapes(self, system: str) -> tuple[Path, ShapesOptions]:
        """Return the folder of a system's videos and runs, and how the videos are generated."""
        videos = self.train_videos * SYSTEMS[system].videos
        options = ShapesOptions(frames=self.frames, train_videos=videos, val_videos=self.val_videos)
        return self.work / f"{videos}-and-{self.val_videos}-videos-of-{self.frames}-frames", options


def main(args: Sequence[str]) -> None:
    """`flowless bench systems`."""
    run(Systems, args)


def _generated(folder: Path, options: ShapesOptions) -> DatasetIndex:
    try:
        if json.loads((folder / MARK).read_text(encoding="utf-8"))["options"] == asdict(options):
            return [DatasetIndex.load(folder / f"{split}.index.jsonl") for split in SPLITS][-1]
    except (FileNotFoundError, FlowlessError):  # nothing there, or an index of an earlier version
        pass
    generate(folder, options=options)
    return DatasetIndex.load(folder / "val.index.jsonl")

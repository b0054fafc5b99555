"""Train systems alike, test them, and show accuracy side by side: what `flowless bench systems` and `flowless bench real` share."""

from __future__ import annotations

import json
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from flowless.bench.systems.system_list import SYSTEMS
from flowless.bench.systems.training_runs import Training, train_all
from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json

if TYPE_CHECKING:
    from flowless.bench.systems.frame_orders import OrderScores
    from flowless.pipeline.dataset.index import DatasetIndex


@dataclass(frozen=True, kw_only=True)
class Comparison(ABC):
    """Options of both benchmarks, and what differs between them."""

    benchmark: ClassVar[str]
    known: ClassVar[tuple[str, ...]]
    """All systems, in the order of the tables."""

    out: Path
    """JSON to write; the page and the folder of the runs have the same name."""
    systems: tuple[str, ...]
    """Systems to train."""
    seeds: int = 3
    """Trainings of each, with different initial weights and order of the videos."""
    epochs: int
    """Times that training sees every video."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the training: auto is mixed bf16 where the processor multiplies in it, else fp32. Name one to combine results of
    several machines."""
    so_far: bool = False
    """Train nothing: measure and show what is trained already."""
    earlier: Path | None = None
    """Earlier result (JSON) of the same settings: its accuracies are taken for systems that --systems does not name."""
    jobs: int | None = None
    """Trainings in parallel, each on one core; by default one per core."""
    json: bool = False
    """Print one JSON document instead of the table."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run: all problems in one error."""
        known = ", ".join(self.known)
        problems = [f"{name!r} is no system; there are {known}" for name in self.systems if name not in self.known]
        problems += [] if self.systems else [f"no system is named; there are {known}"]
        for name in ("seeds", "epochs", "jobs", "val_videos", "frames_per_segment"):
            value, least = getattr(self, name, None), 2 if name == "frames_per_segment" else 1
            if value is not None and value < least:
                problems.append(f"{name} is {value}; it must be at least {least}")
        problems += [] if self.out.suffix == ".json" else [f"out is {self.out}; it must end in .json: page and runs are named like it"]
        if problems:
            raise FlowlessError(f"bench {self.benchmark}: {'; '.join(problems)}.")

    @property
    def work(self) -> Path:
        """The folder of the runs."""
        return self.out.with_suffix("")

    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """Return what an earlier result must share; refuse data that cannot be used."""

    @abstractmethod
    def training(self, system: str, seed: int) -> Training:
        """Return one training."""

    @abstractmethod
    def test_videos(self, systems: Iterable[str]) -> DatasetIndex:
        """Make sure that the videos for these systems are there; return those to test with."""

    @abstractmethod
    def pairs(self, labels: Sequence[str]) -> list[list[str]]:
        """Return the pairs of opposite actions."""

    @abstractmethod
    def goals(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the goals beside what was measured."""

    def with_costs(self, rows: list[dict[str, Any]], test: DatasetIndex) -> list[dict[str, Any]]:
        """Return the rows with what a clip costs, where the benchmark measures it."""
        return rows

    def trainings(self) -> dict[tuple[str, int], Training]:
        """Return (system, seed) -> training; the first seed of every system comes before the second of any."""
        names = [name for name in self.known if name in self.systems]
        keys = [(name, seed) for seed in range(self.seeds) for name in names if seed == 0 or not SYSTEMS[name].of]
        return {key: self.training(*key) for key in keys}


def run(kind: type[Comparison], args: Sequence[str]) -> None:
    """Run a benchmark's command: write the JSON, the page and its plot, and print the result."""
    from flowless.bench.lib.goals import goals_table
    from flowless.bench.systems.result_page import console_table, write_page

    settings = tyro.cli(kind, prog=f"flowless bench {kind.benchmark}", description=kind.__doc__, args=args)
    refuse_unwritable(settings.out)
    document, page = measure(settings), settings.out.with_suffix(".html")
    write_json(settings.out, document)
    write_page(page, document)
    log.print(f"figures: {settings.out}; page: {page}", style="dim", markup=False)
    goals = [goals_table(document["goals"])] if document["goals"] else []
    emit(document, console_table(document), *goals, as_json=settings.json)


def measure(settings: Comparison) -> dict[str, Any]:
    """Train and test once; return the document.

    Raises:
        FlowlessError: The data cannot be used, or a training failed.
    """
    from flowless.bench.lib.system_load import busy_share
    from flowless.bench.systems.frame_orders import score_orders
    from flowless.machine import environment, quick_precision

    if settings.precision == "auto":
        settings = replace(settings, precision=quick_precision())
    conditions = settings.conditions()
    earlier = earlier_rows(settings, conditions)
    trainings = {key: training for key, training in settings.trainings().items() if not settings.so_far or training.kept()}
    if not trainings:
        raise FlowlessError(f"bench {settings.benchmark}: nothing is trained yet in {settings.work}. Leave --so-far out to train.")
    names = list(dict.fromkeys(name for name, _ in trainings))
    test = settings.test_videos(names)
    results = train_all(trainings, jobs=settings.jobs)
    log.print("testing, reversing and shuffling …", style="dim")
    busy = busy_share()
    scores = {key: score_orders(training.checkpoint, test) for key, training in trainings.items()}
    rows = {row["system"]: row for row in earlier}
    for name in names:
        own = [key for key in trainings if key[0] == name]
        pairs = settings.pairs(scores[own[0]].names)
        rows[name] = row_of(name, [scores[key] for key in own], [results[key] for key in own], pairs=pairs)
    ordered = settings.with_costs([rows[name] for name in settings.known if name in rows], test)
    return {
        "benchmark": settings.benchmark,
        "environment": environment(),
        "settings": {**conditions, "unreadable": max(one.unreadable for one in scores.values()), "busy_before": busy},
        "measure": "top-1 on the test videos after the last epoch, centre clip, mean of the seeds; opposite_top1: of the actions that have "
        "an opposite; pairs: of an action and its opposite, first seed; reversed, shuffled: all frames of the same clips in the opposite "
        "order, and in a random one; latency: median of a clip in fp32, interleaved",
        "systems": ordered,
        "goals": settings.goals(ordered),
    }


def row_of(
    name: str, runs: Sequence[OrderScores], results: Sequence[Mapping[str, Any]], *, pairs: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return a system's row: figures over its seeds, of which `runs` are the scores and `results` the result.json."""
    from flowless.bench.systems.frame_orders import count_opposites, share
    from flowless.train.evaluation.metrics import mean_class_accuracy, summary

    system, top1 = SYSTEMS[name], [run.top1("forwards") for run in runs]
    outcomes, backwards = (count_opposites(runs, pairs, order=order) for order in ("forwards", "reversed"))
    by_pair = {" / ".join(pair): share(count_opposites(runs[:1], [pair]), "right") for pair in pairs}
    classes = [summary(run.scores["forwards"], run.labels, names=run.names)["per_class"] for run in runs]
    return {
        "system": name,
        "model": system.model,
        "about": system.about,
        "base": system.of or name,
        "control": bool(system.of),
        "clip": list(runs[0].clip),
        "seeds": [round(one, 4) for one in top1],
        "top1": _mean(top1),
        "spread": round(statistics.stdev(top1), 4) if len(top1) > 1 else None,
        "mean_class": _mean(mean_class_accuracy(run.scores["forwards"], run.labels) for run in runs),
        "opposite_top1": share(outcomes, "right"),
        "reversed_top1": _mean(run.top1("reversed") for run in runs),
        "shuffled_top1": _mean(run.top1("shuffled") for run in runs),
        "reversed_as_opposite": share(backwards, "opposite"),
        "train_top1": _mean(result["history"][-1]["train_top1"] for result in results),
        "seconds": round(_mean(result["seconds"] for result in results)),
        "opposites": outcomes,
        "pairs": {pair: right for pair, right in by_pair.items() if right is not None},
        "per_class": {label: _mean(found[label]["accuracy"] for found in classes) for label in classes[0] if classes[0][label]["videos"]},
    }


def _mean(values: Iterable[float]) -> float:
    return round(statistics.mean(values), 4)


def earlier_rows(settings: Comparison, conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of `--earlier`, each with the `environment` that it was trained in; none without the option.

    Raises:
        FlowlessError: The file cannot be read, is no complete result of this benchmark, or one of the `conditions` differs.
    """
    from flowless.bench.systems.result_page import render

    path, command = settings.earlier, f"flowless bench {settings.benchmark}"
    if path is None:
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlowlessError(f"--earlier {path}: cannot be read ({error}). Give the JSON that `{command}` wrote.") from error
    try:
        if document["benchmark"] != settings.benchmark:
            raise ValueError(document["benchmark"])
        render(document)  # reads every figure
    except Exception as error:
        raise FlowlessError(f"--earlier {path}: this is no result of `{command}`. Give the JSON that it wrote.") from error
    # JSON has no tuples.
    now, before = _flat(json.loads(json.dumps(conditions))), _flat(document["settings"])
    differ = [f"{key} {before.get(key)}, here {value}" for key, value in now.items() if before.get(key) != value and key != "jobs"]
    if differ:
        raise FlowlessError(
            f"--earlier {path}: its rows were made under other settings: {'; '.join(differ)}. "
            f"Use the same settings, or leave --earlier out and train every system."
        )
    return [{"environment": document["environment"], **row} for row in document["systems"] if row["system"] in settings.known]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {inner: found for key, part in value.items() for inner, found in _flat(part, f"{name}.{key}" if name else key).items()}
    return {name: value}

"""`flowless bench systems`: the four systems and their baselines, trained alike from scratch; accuracy beside what it costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from flowless.bench.systems.systems_config import NAMES, SYSTEMS, System
from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from flowless.bench.systems.systems_runs import Run

#: What every system has to reach, and what one that ignores order cannot pass.
WANTED, BLIND = 0.95, 0.5


@dataclass(frozen=True, kw_only=True)
class Systems:
    """Train every system alike on Moving Shapes, from scratch, with a small backbone, and put accuracy beside cost.

    Moving Shapes' actions are each the time-reversal of their twin, so a model that ignores order is right half of the time at
    most. Every system gets the same videos, epochs, batches, optimiser and rate. Each run is kept in the folder named like OUT: the
    same command again goes on where it was stopped, and trains nothing twice. stm-twins is stm by Twins Training, with its augmentation.
    Controls, called -more, are a system trained once on four times as many videos: they show whether it cannot learn this, or has not
    yet.

    Writes OUT (JSON), and a page and its plot beside it: top-1 over the seeds, parameters, multiplications of a clip, and the latency
    of a clip on the fastest of this machine's processor targets.
    """

    out: Path = Path("runs/bench/systems.json")
    """JSON to write; the page and the runs' folder are named like it."""
    systems: tuple[str, ...] = NAMES
    """Systems to train."""
    seeds: int = 3
    """Trainings of each, from other first weights and in another order."""
    epochs: int = 6
    """Times that training sees every video."""
    train_videos: int = 4800
    """Training videos, twins included."""
    val_videos: int = 480
    """Validation videos, twins included."""
    frames: int = 16
    """Frames of a video: the fewer, the faster is what moves."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the training: auto takes mixed bf16 where the processor multiplies in it, else fp32. Name one, so that trainings
    on several machines belong together."""
    so_far: bool = False
    """Train nothing: count, time and show what is trained already."""
    earlier: Path | None = None
    """Earlier result (JSON), made under the same settings: its accuracies are taken for systems that it has and --systems does not name.
    What a clip costs is measured anew for all."""
    jobs: int | None = None
    """Trainings side by side, each on one core; by default one a core."""
    json: bool = False
    """Print one JSON document instead of the table."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run: all problems in one error."""
        problems = [f"{name!r} is no system; there are {', '.join(NAMES)}" for name in self.systems if name not in NAMES]
        if not self.systems:
            problems.append(f"no system is named; there are {', '.join(NAMES)}")
        counts = {name: getattr(self, name) for name in ("seeds", "epochs", "val_videos", "jobs")}
        problems += [f"{name} is {count}; it must be at least 1" for name, count in counts.items() if count is not None and count < 1]
        if self.out.suffix != ".json":
            problems.append(f"out is {self.out}; it must end in .json: its page, plot and runs are named like it")
        if problems:
            raise FlowlessError("bench systems: " + "; ".join(problems) + ".")


def main(words: Sequence[str]) -> None:
    """`flowless bench systems`."""
    settings = tyro.cli(Systems, prog="flowless bench systems", description=Systems.__doc__, args=words)
    refuse_unwritable(settings.out)
    document = measure(settings)
    write_json(settings.out, document)
    from flowless.bench.systems.systems_page import write_page

    write_page(settings.out.with_suffix(".html"), document)
    log.print(f"figures: {settings.out}; page: {settings.out.with_suffix('.html')}", style="dim", markup=False)
    from flowless.bench.lib.goals import goals_table

    goals = [goals_table(document["goals"])] if document["goals"] else []
    emit(document, table(document), *goals, as_json=settings.json)


def measure(settings: Systems) -> dict[str, Any]:
    """Train, count and time; return the document.

    Raises:
        FlowlessError: The videos cannot be made, or a training failed.
    """
    from flowless.bench.lib.earlier_rows import earlier_rows, in_order
    from flowless.bench.lib.system_load import busy_share
    from flowless.bench.systems.systems_cost import costs
    from flowless.bench.systems.systems_pairs import pair_accuracies
    from flowless.bench.systems.systems_runs import Race, train_all, untrained, videos
    from flowless.export.bundle_writer import export_bundle  # noqa: F401 - refused before the training, where its libraries are missing
    from flowless.machine import environment, quick_precision
    from flowless.pipeline.dataset.index import DatasetIndex

    race = Race(
        train_videos=settings.train_videos,
        val_videos=settings.val_videos,
        frames=settings.frames,
        epochs=settings.epochs,
        seeds=settings.seeds,
        precision=quick_precision() if settings.precision == "auto" else settings.precision,
        jobs=settings.jobs,
    )
    conditions = {**asdict(race), "size": race.shapes.size, "blind_to_order": BLIND}
    earlier = earlier_rows(settings.earlier, benchmark="systems", settings=conditions, known=NAMES)
    work, runs = settings.out.with_suffix(""), planned(settings)
    if settings.so_far:
        runs = [run for run in runs if run.training(race, work).kept()]
        if not runs:
            raise FlowlessError(f"bench systems: nothing is trained yet in {race.home(work)}. Leave --so-far out, and it is.")
    shapes = {own: videos(own, work) for own in {race.of(run.system) for run in runs}}
    # The same scenes, however many there are to learn from.
    val = DatasetIndex.load(next(iter(shapes.values())) / "val.index.jsonl")
    results = train_all(runs, race, work=work)
    log.print("counting, judging and timing …", style="dim")
    busy = busy_share()
    checkpoints = {run: run.folder(race, work) / "last.safetensors" for run in runs}
    pairs = {run.system: pair_accuracies(path, val) for run, path in checkpoints.items() if run.seed == 0}
    trained = {run.system for run in runs}
    rows = in_order([*earlier, *(_row(system, results, pairs.get(system, {})) for system in trained)], NAMES)
    of = {row["system"]: next(system.cost_of for system in SYSTEMS if system.name == row["system"]) for row in rows}
    # Neither seed nor videos change what a clip costs, nor do weights: what was not trained here is timed with its first ones.
    known = {run.system.cost_of: path for run, path in reversed(checkpoints.items())}
    cost = costs({name: known.get(name) or untrained(name, race, work, labels=val.labels) for name in of.values()}, val)
    rows = [{**row, **cost[of[row["system"]]]} for row in rows]
    return {
        "benchmark": "systems",
        "environment": environment(),
        "settings": {**conditions, "busy_before": busy},
        "measure": "top-1 of the last epoch on the validation videos, centre clip; pairs: the first seed's, of an action and its reversal; "
        "latency: median of a clip in fp32, all in turn",
        "systems": rows,
        "goals": _goals(rows),
    }


def planned(settings: Systems) -> list[Run]:
    """Return what is to be trained, in this order: a first seed of everything comes before a second one of anything."""
    from flowless.bench.systems.systems_runs import Run

    return [
        Run(system, seed)
        for seed in range(settings.seeds)
        for system in SYSTEMS
        if system.name in settings.systems and (seed == 0 or not system.of)
    ]


def table(document: Mapping[str, Any]) -> Table:
    """Return the result for people."""
    from rich.table import Table

    settings = document["settings"]
    title = f"Moving Shapes, {settings['train_videos']} videos, {settings['epochs']} epochs"
    shown = Table(title=title, caption="M: million parameters; MMAC and ms: of a clip, in fp32")
    for column in ("system", "top-1, %", "seeds", "M", "MMAC", "ms", "on"):
        shown.add_column(column, justify="left" if column in {"system", "on"} else "right", no_wrap=True)
    for row in document["systems"]:
        spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
        shown.add_row(
            row["system"],
            f"{100 * row['top1']:.1f}{spread}",
            str(len(row["seeds"])),
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['macs'] / 1e6:.0f}",
            f"{row['latency_ms']:.1f}",
            row["target"],
        )
    return shown


def _row(system: System, results: Mapping[Run, Mapping[str, Any]], pairs: Mapping[str, float]) -> dict[str, Any]:
    own = {run.seed: result for run, result in results.items() if run.system == system}
    top1 = [round(own[seed]["history"][-1]["val_top1"], 4) for seed in sorted(own)]
    return {
        "system": system.name,
        "model": system.model,
        "about": system.about,
        "base": system.base,
        "control": bool(system.of),
        "seeds": top1,
        "top1": round(statistics.mean(top1), 4),
        "spread": round(statistics.stdev(top1), 4) if len(top1) > 1 else None,
        "train_top1": round(statistics.mean(result["history"][-1]["train_top1"] for result in own.values()), 4),
        "epochs": len(next(iter(own.values()))["history"]),
        "pairs": dict(pairs),
    }


def _goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    from flowless.bench.lib.goals import goal

    found = []
    for row in rows:
        if row["control"]:
            continue
        blind = row["system"] == "tsn"
        found.append(goal(f"{row['system']}: top-1, mean of the seeds", BLIND if blind else WANTED, row["top1"], at_most=blind))
    return found

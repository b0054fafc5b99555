"""`flowless bench systems`: the four systems and their baselines, trained alike from scratch; accuracy beside what it costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import write_json

if TYPE_CHECKING:
    from rich.table import Table

    from flowless.bench.systems_runs import Run, System

#: The order of the table: baselines, then by the year of the paper.
NAMES = ("tsn", "tsm", "tsm-longer", "disentangling", "pan-lite", "pan-full", "stm", "da-tsm")
#: What every system has to reach, and what one that ignores order cannot pass.
WANTED, BLIND = 0.95, 0.5


@dataclass(frozen=True, kw_only=True)
class Systems:
    """Train every system alike on Moving Shapes, from scratch, with a small backbone, and put accuracy beside cost.

    Moving Shapes' actions are each the time-reversal of their twin, so a model that ignores order is right half of the time at
    most. Every system gets the same videos, epochs, batches, optimiser and rate; with Twins Training besides where it applies.
    Each run is kept in the folder named like OUT: the same command again goes on where it was stopped, and trains nothing twice.

    Writes OUT (JSON), and a page and its plot beside it: top-1 over the seeds, parameters, multiplications of a clip, and the latency
    of a clip on the fastest of this machine's processor targets.
    """

    out: Path = Path("runs/bench/systems.json")
    """JSON to write; the page and the runs' folder are named like it."""
    systems: tuple[str, ...] = NAMES
    """Systems to train; tsm-longer is a control, trained once."""
    twins: bool = True
    """Also train by Twins Training what it applies to; a step then takes twice as long."""
    seeds: int = 3
    """Trainings of each, from other first weights and in another order."""
    twins_seeds: int | None = None
    """The same by Twins Training; by default as many."""
    epochs: int = 6
    """Times that training sees every video."""
    train_videos: int = 4800
    """Training videos, twins included."""
    val_videos: int = 480
    """Validation videos, twins included."""
    frames: int = 16
    """Frames of a video: the fewer, the faster is what moves."""
    segments: int = 8
    """Segments of a clip, for what sees one frame of each; what sees stacks of frames takes half as many."""
    jobs: int | None = None
    """Trainings side by side, each on one core; by default one a core."""
    json: bool = False
    """Print one JSON document instead of the table."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run: all problems in one error."""
        problems = [f"{name!r} is no system; there are {', '.join(NAMES)}" for name in self.systems if name not in NAMES]
        counts = (
            ("seeds", "epochs", "segments")
            + (() if self.jobs is None else ("jobs",))
            + (() if self.twins_seeds is None else ("twins_seeds",))
        )
        problems += [f"{name} is {getattr(self, name)}; it must be at least 1" for name in counts if getattr(self, name) < 1]
        if problems:
            raise FlowlessError("bench systems: " + "; ".join(problems) + ".")


def main(words: Sequence[str]) -> None:
    """`flowless bench systems`."""
    settings = tyro.cli(Systems, prog="flowless bench systems", description=Systems.__doc__, args=words)
    document = measure(settings)
    write_json(settings.out, document)
    from flowless.bench.systems_page import write_page

    write_page(settings.out.with_suffix(".html"), document)
    log.print(f"figures: {settings.out}; page: {settings.out.with_suffix('.html')}", style="dim", markup=False)
    from flowless.bench.goals import goals_table

    emit(document, table(document), goals_table(document["goals"]), as_json=settings.json)


def contestants(names: Sequence[str]) -> list[System]:
    """Return the systems of these names."""
    from flowless.bench.systems_runs import System

    # Four stacks of four frames are all that a video of 16 frames has. Disentangling runs two networks on every pair of frames, at
    # ten times the cost: it gets two stacks of three.
    stacks = (("segments", 4), ("frames_per_segment", 4))
    pairs = (("segments", 2), ("frames_per_segment", 3), ("displacement_window", 2))
    found = {
        "tsn": System("tsn", "tsn-r18", True, "single frames, their scores averaged: blind to order"),
        "tsm": System("tsm", "tsm-r18", True, "an eighth of the channels shifted each way between segments"),
        "tsm-longer": System("tsm-longer", "tsm-r18", False, "a control: tsm, trained four times as long", longer=4),
        "disentangling": System(
            "disentangling", "disentangling-bninception", False, "appearance, displacement maps, warped differences", pairs
        ),
        "pan-lite": System("pan-lite", "pan-lite-r18", True, "a frame and its PA maps, shift, VAP", stacks),
        "pan-full": System("pan-full", "pan-full-r18", True, "an RGB and a PA branch, each with shift and VAP", stacks),
        "stm": System("stm", "stm-r18", True, "CSTM and CMM in every block, single frames"),
        "da-tsm": System("da-tsm", "da-tsm-r18", False, "dynamic appearance of each segment, shift; a second loss (MGDA)", stacks),
    }
    return [found[name] for name in NAMES if name in names]


def measure(settings: Systems) -> dict[str, Any]:
    """Train, count and time; return the document.

    Raises:
        FlowlessError: The videos cannot be made, or a training failed.
    """
    from flowless.bench.environment import environment, instruction_sets
    from flowless.bench.systems_cost import latencies, sizes
    from flowless.bench.systems_runs import Race, Run, train_all, videos

    race = Race(
        train_videos=settings.train_videos,
        val_videos=settings.val_videos,
        frames=settings.frames,
        epochs=settings.epochs,
        segments=settings.segments,
        seeds=settings.seeds,
        # The faster arithmetic here: mixed bf16 where the processor multiplies in it.
        precision="bf16" if {"avx512_bf16", "amx_bf16"} & set(instruction_sets()) else "fp32",
        jobs=settings.jobs,
    )
    systems = contestants(settings.systems)
    work = settings.out.with_suffix("") / race.name
    shapes = videos(race, work / "videos")
    # A first seed of everything comes before a second one of anything.
    seeds = {"scores": settings.seeds, "twins": (settings.twins_seeds or settings.seeds) if settings.twins else 0}
    runs = [
        Run(system, objective, seed)
        for objective, count in seeds.items()
        for seed in range(count)
        for system in systems
        if (objective == "scores" or system.twins) and (seed == 0 or not system.control)
    ]
    results = train_all(runs, race, shapes=shapes, work=work)
    log.print("counting and timing …", style="dim")
    cost = sizes(systems, work=work)
    times = latencies(systems, work=work, shapes=shapes)
    rows = [_row(system, objective, results, {**cost[system.name], **times[system.name]}) for system, objective in _entries(runs)]
    return {
        "benchmark": "systems",
        "environment": environment(),
        "settings": {**asdict(race), "size": race.shapes.size, "chance": 1 / 12, "blind_to_order": BLIND},
        "measure": "top-1 of the last epoch on the validation videos, centre clip; latency: median of a clip in fp32, all in turn",
        "systems": rows,
        "goals": _goals(rows),
    }


def table(document: Mapping[str, Any]) -> Table:
    """Return the result for people."""
    from rich.table import Table

    settings = document["settings"]
    shown = Table(title=f"Moving Shapes, {settings['train_videos']} videos, {settings['epochs']} epochs, {settings['seeds']} seeds")
    for column in ("system", "clip", "top-1", "±", "parameters", "MMAC", "ms a clip", "on"):
        shown.add_column(column, justify="left" if column in {"system", "on"} else "right", no_wrap=True)
    for row in document["systems"]:
        name = row["system"] + (" + Twins" if row["objective"] == "twins" else "")
        clip = " × ".join(map(str, row["clip"][:2]))
        shown.add_row(
            name,
            clip,
            f"{100 * row['top1']:.1f} %",
            f"{100 * row['spread']:.1f}",
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['macs'] / 1e6:.0f}",
            f"{row['latency_ms']:.1f}",
            row["target"],
        )
    return shown


def _entries(runs: Sequence[Run]) -> list[tuple[System, str]]:
    """Each system with each of its objectives, in the table's order."""
    pairs = dict.fromkeys((run.system, run.objective) for run in runs)
    return sorted(pairs, key=lambda pair: (NAMES.index(pair[0].name), pair[1]))


def _row(system: System, objective: str, results: Mapping[Run, Mapping[str, Any]], cost: Mapping[str, Any]) -> dict[str, Any]:
    own = {run.seed: result for run, result in results.items() if (run.system, run.objective) == (system, objective)}
    top1 = [round(own[seed]["history"][-1]["val_top1"], 4) for seed in sorted(own)]
    return {
        "system": system.name,
        "model": system.model,
        "about": system.about,
        "objective": objective,
        "seeds": top1,
        "top1": round(statistics.mean(top1), 4),
        "spread": round(statistics.stdev(top1), 4) if len(top1) > 1 else 0.0,
        "train_top1": round(statistics.mean(result["history"][-1]["train_top1"] for result in own.values()), 4),
        "epochs": len(next(iter(own.values()))["history"]),
        "training_s": round(statistics.median(sum(row["seconds"] for row in result["history"]) for result in own.values()), 1),
        **cost,
    }


def _goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    from flowless.bench.goals import goal

    found = []
    for row in rows:
        name = row["system"] + (" with Twins" if row["objective"] == "twins" else "")
        blind = row["system"] == "tsn"
        found.append(goal(f"{name}: top-1, mean of the seeds", BLIND if blind else WANTED, row["top1"], at_most=blind))
    return found

"""`flowless bench neighbours`: what training, evaluation and each engine lose where another program wants the cores too."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from flowless.bench.speed.neighbours_work import KINDS
from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json
from flowless.machine import usable_cores

if TYPE_CHECKING:
    from rich.table import Table

    from flowless.bench.speed.neighbours_workers import Piece, Worker

#: How many times its fair time a piece of work may take.
WANTED = 1.3
#: How threads wait: as every flowless command has it, and as the libraries do by themselves, the baseline.
ASLEEP, DEFAULTS = "asleep", "libraries' defaults"
#: Neighbour -> what it is called in goals and tables.
NEIGHBOURS = {"busy": "beside a busy core", "second": "beside a second of its kind"}
FAIR = (
    "Cores are shared out evenly between programs, and what one does not want the other gets. A program that uses `used` cores alone "
    "(core-seconds over seconds, with waiting threads asleep, so that waiting is not counted as work) gets `share` of C cores beside "
    "one that would use `other`: share = used where used + other <= C, otherwise min(used, max(C / 2, C - other)). Beside a busy core "
    "other is 1, beside a second of its kind other is used. The fair time is the time alone x used / share, a ratio is the time measured "
    "over the fair time; below 1 the operating system gave it more than its share."
)


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Measure training, evaluation and each engine alone, beside a program that keeps one core busy, and beside a second of its kind.

    Each is given as a ratio to its fair time. FAIR SHARE: cores are shared out evenly between programs, and what one does not want
    the other gets. On C cores, work that uses all of them takes C / (C - 1) times as long beside one busy core and twice as long beside a
    second of its kind; work that uses one core of two takes no longer beside either. How many cores it uses is measured: core-seconds over
    seconds, alone. A ratio of 1 is fair, 1.3 at most is the goal.

    Everything is measured twice in turn: as flowless commands run (threads that wait sleep), and by the libraries' own defaults (they
    keep their core busy for a while), which is the baseline. It needs the machine for itself: a quarter of an hour on two cores.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    """What to measure."""
    model: str = "pan-lite-r50"
    """Network that the engines run; training and evaluation take pan-lite-r18 on Moving Shapes."""
    size: int = 224
    """Side of the square that it sees, in pixels."""
    rounds: int = 3
    """Times that everything is measured, all in turn."""
    pieces: int = 3
    """Pieces of work measured each time, at least: epochs, evaluations, clips."""
    videos: int = 48
    """Videos of an epoch and of an evaluation."""
    baseline: bool = True
    """Also measure by the libraries' defaults, which takes most of the time."""
    quick: bool = False
    """One round of one piece with a small network: shows that everything runs, measures little."""
    out: Path = Path("runs/bench/neighbours.json")
    """JSON to write."""
    json: bool = False
    """Print one JSON document instead of the tables."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured: all problems in one error."""
        problems = [f"{name!r} is no kind; there are {', '.join(KINDS)}" for name in self.kinds if name not in KINDS]
        if not self.kinds:
            problems.append(f"no kind is named; there are {', '.join(KINDS)}")
        least = {"rounds": 1, "pieces": 1, "size": 32, "videos": 48}
        counts = {name: getattr(self, name) for name in least}
        problems += [f"{name} is {count}; it must be at least {least[name]}" for name, count in counts.items() if count < least[name]]
        if problems:
            raise FlowlessError("bench neighbours: " + "; ".join(problems) + ".")


def main(words: Sequence[str]) -> None:
    """`flowless bench neighbours`."""
    settings = tyro.cli(Neighbours, prog="flowless bench neighbours", description=Neighbours.__doc__, args=words)
    refuse_unwritable(settings.out)
    document = measure(settings)
    write_json(settings.out, document)
    from flowless.bench.lib.goals import goals_table

    log.print(f"figures: {settings.out}", style="dim", markup=False)
    emit(document, table(document), goals_table(document["goals"]), as_json=settings.json)


def measure(settings: Neighbours) -> dict[str, Any]:
    """Make the inputs, measure, and return the document. Nothing stays behind: no process, no file."""
    from flowless.bench.lib.system_load import busy_share, judged
    from flowless.bench.speed.neighbours_work import make_inputs
    from flowless.bench.speed.neighbours_workers import ended_in_order
    from flowless.machine import environment

    busy = busy_share()
    model, size, config = ("pan-lite-r18", 64, {"width": 0.25, "blocks": 1}) if settings.quick else (settings.model, settings.size, {})
    with ended_in_order(), tempfile.TemporaryDirectory(prefix="flowless-bench-") as name:
        log.print("making videos, a checkpoint and engines …", style="dim")
        make_inputs(Path(name), kinds=settings.kinds, model=model, size=size, videos=settings.videos, config=config)
        rows = [row for kind in settings.kinds for row in _rows(kind, Path(name), settings)]
    return {
        "benchmark": "neighbours",
        "environment": environment(),
        "settings": {
            "model": model,
            "size": size,
            "rounds": 1 if settings.quick else settings.rounds,
            "pieces": 1 if settings.quick else settings.pieces,
            "videos": settings.videos,
            "quick": settings.quick,
            "busy_before": busy,
        },
        "measure": "medians over all pieces of all rounds, in milliseconds; every round takes all in turn",
        "fair_share": FAIR,
        "kinds": {kind: KINDS[kind] for kind in settings.kinds},
        "rows": rows,
        "goals": judged(goals(rows), busy),
    }


def _rows(kind: str, folder: Path, settings: Neighbours) -> list[dict[str, Any]]:
    """Measure one kind; return a row for each way of waiting, flowless' own first."""
    from flowless.bench.speed.neighbours_workers import Worker

    ways = (ASLEEP, DEFAULTS) if settings.baseline else (ASLEEP,)
    pieces: dict[str, dict[str, list[Piece]]] = {way: {"alone": [], **{name: [] for name in NEIGHBOURS}} for way in ways}
    with ExitStack() as stack:
        pairs: dict[str, list[Worker]] = {
            way: [stack.enter_context(Worker(kind, folder, by_default=way == DEFAULTS)) for _ in range(2)] for way in ways
        }
        for number in range(1 if settings.quick else settings.rounds):
            for way, workers in pairs.items():
                log.print(f"{kind}, {way}, round {number + 1} …", style="dim", markup=False)
                for place, found in _once(workers, folder, 1 if settings.quick else settings.pieces).items():
                    pieces[way][place] += found
    own = pieces[ASLEEP]["alone"]
    used = min(usable_cores(), statistics.median(piece.cpu_s / piece.seconds for piece in own))
    return [row_of(kind, way, found, used=used, cores=usable_cores()) for way, found in pieces.items()]


def _once(workers: Sequence[Worker], folder: Path, count: int) -> dict[str, list[Piece]]:
    """Let a worker work alone, beside a busy core, and beside the other; return the pieces of each."""
    from flowless.bench.speed.neighbours_workers import Worker, side_by_side

    first, second = workers
    found = {"alone": side_by_side([first], count)}
    with Worker("busy", folder):
        found["busy"] = side_by_side([first], count)
    return {**found, "second": side_by_side([first, second], count)}


def fair_share(used: float, *, other: float, cores: int) -> float:
    """Return how many cores a program that would use `used` gets beside one that would use `other`; see `FAIR`."""
    return used if used + other <= cores else min(used, max(cores / 2, cores - other))


def row_of(kind: str, way: str, pieces: Mapping[str, Sequence[Piece]], *, used: float, cores: int) -> dict[str, Any]:
    """Return the JSON row of one kind and way of waiting: times, fair times and their ratios."""
    times = {place: statistics.median(piece.seconds for piece in found) for place, found in pieces.items()}
    own = statistics.median(piece.cpu_s / piece.seconds for piece in pieces["alone"])
    row: dict[str, Any] = {
        "kind": kind,
        "waiting": way,
        "pieces": {place: len(found) for place, found in pieces.items()},
        "alone_ms": round(1e3 * times["alone"], 1),
        "cores_busy": round(own, 2),
        "cores_used": round(used, 2),
    }
    for name, other in (("busy", 1.0), ("second", used)):
        fair = times["alone"] * used / fair_share(used, other=other, cores=cores)
        row |= {
            f"{name}_ms": round(1e3 * times[name], 1),
            f"{name}_fair_ms": round(1e3 * fair, 1),
            f"{name}_ratio": round(times[name] / fair, 2),
        }
    return row


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say of every kind as flowless runs it whether it stays near its fair time."""
    from flowless.bench.lib.goals import goal

    return [
        goal(f"{row['kind']} {called}, over its fair time", WANTED, row[f"{name}_ratio"], at_most=True)
        for row in rows
        if row["waiting"] == ASLEEP
        for name, called in NEIGHBOURS.items()
    ]


def table(document: Mapping[str, Any]) -> Table:
    """Return the rows for people."""
    from rich.table import Table

    cores = document["environment"]["cores"]
    shown = Table(title=f"Beside others on {cores} cores", caption="× fair: time over the fair time; --help says what is fair")
    for column in ("work", "threads that wait", "alone, ms", "cores", "busy core, ms", "× fair", "a second, ms", "× fair"):
        names = column in {"work", "threads that wait"}
        shown.add_column(column, justify="left" if names else "right", no_wrap=names)
    for row in document["rows"]:
        shown.add_row(
            row["kind"] if row["waiting"] == ASLEEP else "",
            row["waiting"],
            f"{row['alone_ms']:.0f}",
            f"{row['cores_busy']:.1f}",
            *(text for name in NEIGHBOURS for text in (f"{row[f'{name}_ms']:.0f}", f"{row[f'{name}_ratio']:.2f}")),
        )
    return shown


def readme_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the README's table in Markdown."""
    lines = [
        f"Beside another program on {document['environment']['cores']} cores, times as long as a fair share of them would allow"
        " (`flowless bench neighbours`); in brackets by the libraries' defaults, whose threads keep their core while they wait."
        " Threads that sleep cost something where nobody else is: the first column. `OMP_WAIT_POLICY=ACTIVE` is for a machine of your own.",
        "",
        "| work | alone, over the defaults | beside a busy core | beside a second of its kind |",
        "|---|---|---|---|",
    ]
    baseline = {row["kind"]: row for row in document["rows"] if row["waiting"] == DEFAULTS}
    for row in document["rows"]:
        if row["waiting"] == ASLEEP:
            before = baseline.get(row["kind"])
            figures = [
                f"{row[f'{name}_ratio']:.1f}" + (f" ({before[f'{name}_ratio']:.1f})" if before is not None else "") for name in NEIGHBOURS
            ]
            alone = f"{row['alone_ms'] / before['alone_ms']:.2f}" if before is not None else ""
            lines.append(f"| {row['kind']} | {alone} | {' | '.join(figures)} |")
    return lines

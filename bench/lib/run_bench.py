"""From a benchmark's command line to its JSON file and tables: what all benchmarks of this folder share."""

from __future__ import annotations

import importlib
import inspect
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from flowless.console import emit
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json

if TYPE_CHECKING:
    from rich.table import Table

#: Smallest value of a count where that is not 1.
_LEAST = {"threads": 0, "blocks": 0, "clips": 2000}


@dataclass(frozen=True, kw_only=True)
class BenchArgs:
    """Where a result goes."""

    out: Path | None = None
    """JSON to write; by default runs/bench/NAME.json."""
    json: bool = False
    """Print one JSON document instead of the tables."""


@dataclass(frozen=True, kw_only=True)
class TimingArgs(BenchArgs):
    """How runners are timed."""

    videos: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...")] = ()
    """Videos to measure with; none: four H.264 videos of ten seconds are made."""
    runs: int = 15
    """Rounds; each runner runs once in each."""
    threads: int = 0
    """CPU threads of every runner; 0: one a core."""


def run_bench(
    name: str,
    args_type: type[BenchArgs],
    args: Sequence[str],
    *,
    measure: Callable[[Any], dict[str, Any]],
    tables: Callable[[dict[str, Any]], list[Table]],
    judge_busy: bool = False,
) -> dict[str, Any]:
    """Parse arguments, `measure` the document's parts, write it to `--out`, print it or its tables, and return it.

    On a busy machine goals are not judged, unless `judge_busy`. SIGTERM ends processes and removes files as Ctrl-C does.
    """
    from flowless.bench.lib.goals import goals_table
    from flowless.bench.lib.system_load import busy_share, judged
    from flowless.machine import environment

    parsed = tyro.cli(args_type, prog=f"flowless bench {name}", description=inspect.getdoc(args_type), args=args)
    values = vars(parsed)
    counts = {key: _LEAST.get(key, 1) for key, value in values.items() if type(value) is int}
    wrong = [f"{key} is {values[key]}; it must be at least {least}" for key, least in counts.items() if values[key] < least]
    if wrong:
        raise FlowlessError(f"bench {name}: {', '.join(wrong)}.")
    out = parsed.out or Path("runs/bench", f"{name}.json")
    refuse_unwritable(out)
    busy = busy_share()
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        parts = measure(parsed)
    except BrokenProcessPool as error:
        raise FlowlessError(f"bench {name}: a process was killed, as happens when memory runs out. Free some, or measure less.") from error
    finally:
        signal.signal(signal.SIGTERM, before)
    # Of a path the name alone: results are committed.
    given = {key: value for key, value in values.items() if key not in {"out", "json", "videos", "official"}}
    settings: dict[str, Any] = {key: value.name if isinstance(value, Path) else value for key, value in given.items()}
    goals = judged(parts.pop("goals", []), None if judge_busy else busy)
    settings["busy_before"] = busy
    settings |= parts.pop("settings", {})
    document = {"benchmark": name, "environment": environment(), "settings": settings, **parts, "goals": goals}
    write_json(out, document)
    emit(document, *tables(document), *([goals_table(goals)] if goals else []), as_json=parsed.json)
    return document


def import_script(name: str) -> ModuleType:
    """Import `scripts/NAME.py` of the checkout."""
    scripts = str(Path(__file__).resolve().parents[2] / "scripts")
    if scripts not in sys.path:
        sys.path.append(scripts)
    return importlib.import_module(name)

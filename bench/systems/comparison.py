"""Train systems alike, test them, and show accuracy side by side: `flowless bench systems` and `flowless bench real`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from flowless.bench.systems.settings import Real, Systems
from flowless.bench.systems.system_list import SYSTEMS
from flowless.bench.systems.training_runs import Training, train_all
from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json


def _run(kind: type[Systems | Real], args: Sequence[str]) -> None:
    """`flowless bench systems` or `flowless bench real`: write the JSON, the page and its plot, and print the result."""
    from flowless.bench.lib.goals import goals_table
    from flowless.bench.lib.tables import rows_table
    from flowless.bench.systems.result_page import table_of, write_page

    settings = tyro.cli(kind, prog=f"flowless bench {kind.benchmark}", description=kind.__doc__, args=args)
    refuse_unwritable(settings.out)
    document, page = measure(settings), settings.out.with_suffix(".html")
    write_json(settings.out, document)
    write_page(page, document)
    log.print(f"figures: {settings.out}; page: {page}", style="dim", markup=False)
    table = table_of(document)
    shown = rows_table(f"bench {kind.benchmark}", table, {heading: heading for heading in table[0]})
    emit(document, shown, goals_table(document["goals"]), as_json=settings.json)


systems, real = partial(_run, Systems), partial(_run, Real)


def measure(settings: Systems | Real) -> dict[str, Any]:
    """Train and test once; return the document. Raises FlowlessError where the data cannot be used, or a training failed."""
    from flowless.bench.lib.system_load import busy_share
    from flowless.bench.systems.order_scores import row_of, score_orders
    from flowless.machine import environment

    conditions = settings.conditions()
    earlier = earlier_rows(settings.earlier, {"benchmark": settings.benchmark, **conditions}) if settings.earlier else []
    rows = {row["system"]: row for row in earlier}
    trainings = {key: training for key, training in trainings_of(settings).items() if not settings.so_far or training.kept()}
    if not trainings:
        raise FlowlessError(f"bench {settings.benchmark}: nothing is trained yet beside {settings.out}. Leave --so-far out to train.")
    names = list(dict.fromkeys(name for name, _ in trainings))
    test = settings.test_videos(names)
    results = dict(zip(trainings, train_all(list(trainings.values())), strict=True))
    log.print("testing, reversing and shuffling …", style="dim")
    busy, pairs = busy_share(), settings.pairs(test.labels)
    found = {key: score_orders(training.folder / "last.safetensors", test) for key, training in trainings.items()}
    for name in names:
        own = [key for key in trainings if key[0] == name]
        rows[name] = row_of(name, [found[key] for key in own], [results[key] for key in own], labels=test.labels, pairs=pairs)
    ordered = [rows[name] for name in type(settings).systems if name in rows]
    if settings.benchmark == "systems":
        from flowless.bench.systems.engine_cost import measure_cost

        recipes = {row["base"]: settings.training(row["base"], 0).recipe for row in ordered}
        costs = measure_cost(recipes, folder=settings.out.with_suffix("") / "engines", test=test)
        ordered = [{**row, **costs[row["base"]]} for row in ordered]
    unreadable = len(test.videos) - int(min(confusion.sum() for run in found.values() for confusion in run.values()))
    return {
        "benchmark": settings.benchmark,
        "environment": environment(),
        "settings": {**conditions, "unreadable": unreadable, "busy_before": busy},
        "systems": ordered,
        "goals": settings.goals(ordered),
    }


def trainings_of(settings: Systems | Real) -> dict[tuple[str, int], Training]:
    """Return (system, seed) -> training; the first seed of every system comes before the second of any; controls have one seed."""
    names = [name for name in type(settings).systems if name in settings.systems]
    keys = [(name, seed) for seed in range(settings.seeds) for name in names if seed == 0 or not SYSTEMS[name].of]
    return {key: settings.training(*key) for key in keys}


def earlier_rows(path: Path, conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an earlier result's rows, each with its `environment`; raise FlowlessError if it is incomplete or `conditions` differ."""
    from flowless.bench.systems.result_page import render

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        before = _flat({"benchmark": document["benchmark"], **document["settings"]})
        render(document)  # reads every figure
    except Exception as error:
        raise FlowlessError(
            f"--earlier {path}: cannot be read as a result of this benchmark ({type(error).__name__}: {error}). Give the JSON it wrote."
        ) from error
    now = _flat(json.loads(json.dumps(conditions)))  # JSON has no tuples
    differ = [f"{key} {before.get(key)}, here {value}" for key, value in now.items() if before.get(key) != value]
    if differ:
        raise FlowlessError(
            f"--earlier {path}: its rows were made under other settings: {'; '.join(differ)}. "
            f"Use the same settings, or leave --earlier out and train every system."
        )
    return [{"environment": document["environment"], **row} for row in document["systems"]]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {inner: found for key, part in value.items() for inner, found in _flat(part, f"{name}.{key}" if name else key).items()}
    return {name: value}

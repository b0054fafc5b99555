"""`--precision auto`: every precision of every target tried, one recommended, and the table of what was found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flowless.console import log
from flowless.engines.backends.backend import why_not
from flowless.engines.bundle.manifest import Artefact, Target, read_manifest
from flowless.errors import FlowlessError
from flowless.export.build_engine import build, engine_key
from flowless.export.bundle_writer import keep_trials
from flowless.export.precision.calibration import Calibration
from flowless.export.precision.precisions import PRECISIONS
from flowless.export.targets.build_options import BuildOptions
from flowless.export.verify.checks import Checks, EngineRefused
from flowless.files import sha256_of
from flowless.machine import machine_name

#: Figures of a trial, as its row has them.
_FIGURES = ("max_abs_diff", "snr_db", "top1", "fp32_top1", "latency_ms_p50")

#: Rounds of the race between all that was kept, each of which every engine runs once.
_ROUNDS = 15


def try_all(
    bundle: str | os.PathLike[str],
    targets: Sequence[Target],
    *,
    options: BuildOptions | None = None,
    checks: Checks | None = None,
    calibration: Calibration | None = None,
) -> list[dict[str, Any]]:
    """Try every precision of each target, and keep what passes.

    Nothing that was tried before on this machine, with the same graph, options, videos and versions, is tried again.

    Returns:
        One row a trial, as the manifest keeps them: `target`, `precision`, `kept`, `status` (or why it was not kept, and at which
        `gate`), `key`, `machine`, and what was measured until then. `recommended` is true in one row at most.

    Raises:
        FlowlessError: The bundle cannot be used, or no target takes it even in fp32.
    """
    options, checks = options or BuildOptions(), checks or Checks()
    here = machine_name()
    before = {(row["target"], row["precision"]): row for row in read_manifest(bundle).trials if row.get("machine") == here}
    rows: list[dict[str, Any]] = []
    failed: FlowlessError | None = None
    for target in targets:
        try:
            rows += _target_trials(bundle, target, (options.for_target(target), checks, calibration), before)
        except FlowlessError as error:
            # Without fp32 there is nothing to compare with: this target is given up, the others are not.
            failed = failed or error
            log.print(f"{bundle}: {target}: {error}", style="yellow", markup=False, soft_wrap=True)
            rows += [_row(target, precision, f"not built: {_first_sentence(error)}") for precision in PRECISIONS]
    if failed and not any(row["kept"] for row in rows):
        raise failed
    if any(row.get("new") for row in rows):
        _race(bundle, rows, threads=options.threads)
    best = recommended(rows)
    rows = [{**{key: value for key, value in row.items() if key != "new"}, "machine": here, "recommended": row is best} for row in rows]
    others = [row for row in read_manifest(bundle).trials if row["target"] not in targets]
    keep_trials(bundle, [*others, *rows])
    return rows


def _target_trials(
    bundle: str | os.PathLike[str],
    target: Target,
    how: tuple[BuildOptions, Checks, Calibration | None],
    before: dict[tuple[str, str], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Try every precision of one target; raise where its fp32 engine cannot be built."""
    rows = []
    for precision in PRECISIONS:
        if precision == "int8" and how[2] is None:
            rows.append(_row(target, precision, "not tried: it needs videos, --calibrate INDEX"))
        else:
            rows.append(_trial(bundle, target, precision, how, before.get((target, precision))))
    return rows


def _race(bundle: str | os.PathLike[str], rows: list[dict[str, Any]], *, threads: int | None) -> None:
    """Time what was kept and runs here once more, all in turn: only so can one target's time be compared with another's."""
    from flowless.engines.loading import load
    from flowless.export.verify.reference import Reference
    from flowless.timing import time_interleaved

    manifest = read_manifest(bundle)
    clip = Reference.load(manifest.path_of(manifest.reference), manifest.spec).clips[:1]
    running = [row for row in rows if row["kept"] and row["status"] != "built, not run here"]
    engines = {f"{row['target']} {row['precision']}": load(bundle, row["target"], row["precision"], threads=threads) for row in running}
    found = time_interleaved(
        {name: lambda engine=engine: engine(clip) for name, engine in engines.items()}, runs=_ROUNDS, warmup=2, warmup_each=1
    )
    for row in running:
        row["latency_ms_p50"] = found[f"{row['target']} {row['precision']}"].p50_ms


def recommended(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row to use: of what runs here the quickest, otherwise the lowest precision that was kept."""
    kept = [row for row in rows if row["kept"]]
    timed = [row for row in kept if row.get("latency_ms_p50") is not None]
    if timed:
        return min(timed, key=lambda row: row["latency_ms_p50"])
    return max(kept, key=lambda row: PRECISIONS.index(row["precision"]), default=None)


def _trial(
    bundle: str | os.PathLike[str],
    target: Target,
    precision: str,
    how: tuple[BuildOptions, Checks, Calibration | None],
    older: dict[str, Any] | None,
) -> dict[str, Any]:
    options, checks, calibration = how
    manifest = read_manifest(bundle)
    key = engine_key(manifest, target, precision, options, calibration)
    asked = _asked(checks)
    if older and older["key"] == key and not older["kept"] and not options.force and older.get("checks") == asked:
        return older
    row = {**_row(target, precision, ""), "key": key, "checks": asked}
    try:
        record = build(bundle, target=target, precision=precision, options=options, checks=checks, calibration=calibration)
        if older and older["kept"] and older["key"] == record.key and record == manifest.artefact(target, precision):
            return {**row_of(record), "latency_ms_p50": older["latency_ms_p50"]}
        return {**row_of(record), "new": True}
    except EngineRefused as error:
        log.print(f"{bundle}: {error}", style="yellow", markup=False, soft_wrap=True)
        figures = {name: error.figures.get(name) for name in _FIGURES}
        return {**row, "status": f"not kept: {error.short}", "gate": error.gate, **figures}
    except FlowlessError as error:
        if precision == "fp32":
            raise
        log.print(f"{bundle}: {target} {precision}: {error}", style="yellow", markup=False, soft_wrap=True)
        return {**row, "status": f"not built: {_first_sentence(error)}"}


def row_of(record: Artefact) -> dict[str, Any]:
    """Return the row of an engine that was kept."""
    figures = {name: record.figures.get(name) for name in _FIGURES}
    here = {} if why_not(record.target, record) is None else {"latency_ms_p50": None}
    row = _row(record.target, record.precision, record.status)
    return {**row, "kept": True, "key": record.key, **figures, "max_abs_diff": record.max_abs_diff, **here}


def _row(target: str, precision: str, status: str) -> dict[str, Any]:
    return {"target": target, "precision": precision, "kept": False, "status": status, "gate": "", "key": "", **dict.fromkeys(_FIGURES)}


def _asked(checks: Checks) -> dict[str, Any]:
    """Return what decides whether an engine that was not kept would be now."""
    return {**asdict(checks), "data": sha256_of(checks.data) if checks.data else None}


def _first_sentence(error: Exception) -> str:
    text = str(error)
    for end in (" Nothing was kept", ". "):
        text = text.split(end, maxsplit=1)[0]
    return text.removesuffix(".").removesuffix(":")

"""`--precision auto`: try every precision of every target, keep what passes, and recommend one engine for this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flowless.console import log
from flowless.engines.backends.backend import why_not
from flowless.engines.bundle.manifest import Artefact, Manifest, read_manifest
from flowless.engines.targets import Target
from flowless.errors import FlowlessError
from flowless.export.build_engine import build
from flowless.export.bundle_changes import keep_trials
from flowless.export.precision.calibration import Calibration
from flowless.export.precision.precisions import PRECISIONS
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.engine_key import engine_key
from flowless.export.verify.checks import Checks, EngineRefused
from flowless.files import sha256_of
from flowless.machine import machine_name

#: Measured values of a row.
_FIGURES = ("max_abs_diff", "snr_db", "top1", "fp32_top1", "latency_ms_p50")

#: A row: `target`, `precision`, `kept`, `status` (or why it was not kept, and at which `gate`), `key`, `machine`, `checks`, figures.
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What all trials of one call have in common."""

    bundle: Path
    options: BuildOptions = field(default_factory=BuildOptions)
    checks: Checks = field(default_factory=Checks)
    calibration: Calibration | None = None


def try_all(
    bundle: str | os.PathLike[str],
    targets: Sequence[Target],
    *,
    options: BuildOptions | None = None,
    checks: Checks | None = None,
    calibration: Calibration | None = None,
) -> list[Row]:
    """Try every precision of each target, keep what passes, and recommend one of all engines that were tried on this machine.

    A trial that was run before on this machine, with the same graph, options, videos and versions, is not run again. The manifest keeps
    the rows. Rows of other targets that were tried on this machine before take part in the recommendation: it is one per machine.

    Returns:
        One row per trial, as the manifest keeps them. `recommended` is true in at most one row, and in none where the recommended engine
        is one of another target.

    Raises:
        FlowlessError: The bundle cannot be used, or no target takes it even in fp32.
    """
    settings = TrialSettings(bundle=Path(bundle), options=options or BuildOptions(), checks=checks or Checks(), calibration=calibration)
    rows = try_precisions(settings, targets)
    manifest, here = read_manifest(bundle), machine_name()
    others = [dict(row) for row in manifest.trials if row["target"] not in targets]
    mine = [*rows, *(row for row in others if row.get("machine") == here and _still_kept(manifest, row))]
    built = [row.pop("new", False) for row in rows]
    if any(built):
        _time_interleaved(manifest, mine, threads=settings.options.threads)
    best = recommended(mine)
    for row in (*rows, *(row for row in others if row.get("machine") == here)):
        row |= {"machine": here, "recommended": row is best}
    keep_trials(bundle, [*others, *rows])
    return rows


def try_precisions(settings: TrialSettings, targets: Sequence[Target]) -> list[Row]:
    """Build every precision of each target, and keep what passes; the rows are not written, and nothing is recommended.

    Returns:
        One row per trial. `new` is true where an engine was built.

    Raises:
        FlowlessError: The bundle cannot be used, or no target takes it even in fp32.
    """
    manifest, here = read_manifest(settings.bundle), machine_name()
    manifest.refuse_packed()
    earlier = {(row["target"], row["precision"]): row for row in manifest.trials if row.get("machine") == here}
    rows: list[Row] = []
    first_error: FlowlessError | None = None
    for target in targets:
        try:
            rows += _try_target(settings, target, earlier)
        except FlowlessError as error:
            # Without an fp32 engine a target's lower precisions have nothing to be compared with. The other targets are still tried.
            first_error = first_error or error
            log.print(f"{settings.bundle}: {target}: {error}", style="yellow", markup=False, soft_wrap=True)
            rows += [_row(target, precision, f"not built: {_first_sentence(error)}") for precision in PRECISIONS]
    if first_error and not any(row["kept"] for row in rows):
        raise first_error
    return rows


def recommended(rows: Sequence[Row]) -> Row | None:
    """Return the row to use: the fastest of those that were timed here, otherwise the lowest precision that was kept."""
    kept = [row for row in rows if row["kept"]]
    timed = [row for row in kept if row.get("latency_ms_p50") is not None]
    if timed:
        return min(timed, key=lambda row: row["latency_ms_p50"])
    return max(kept, key=lambda row: PRECISIONS.index(row["precision"]), default=None)


def row_of(record: Artefact) -> Row:
    """Return the row of an engine that was kept."""
    figures = {name: record.figures.get(name) for name in _FIGURES}
    row = _row(record.target, record.precision, record.status) | figures
    if why_not(record.target, record) is not None:
        row["latency_ms_p50"] = None  # it was timed on another machine
    return row | {"kept": True, "key": record.key, "max_abs_diff": record.max_abs_diff}


def _try_target(settings: TrialSettings, target: Target, earlier: Mapping[tuple[str, str], Row]) -> list[Row]:
    """Try every precision of one target; raise where its fp32 engine cannot be built. `earlier`: this machine's rows in the manifest."""
    rows = []
    for precision in PRECISIONS:
        if precision == "int8" and settings.calibration is None:
            rows.append(_row(target, precision, "not tried: it needs videos, --calibrate INDEX"))
        else:
            rows.append(_try(settings, target, precision, earlier.get((target, precision))))
    return rows


def _try(settings: TrialSettings, target: Target, precision: str, earlier: Row | None) -> Row:
    bundle, checks, calibration = settings.bundle, settings.checks, settings.calibration
    manifest, options = read_manifest(bundle), settings.options.for_target(target)
    key, limits = engine_key(manifest, target, precision, options, calibration), _limits(checks)
    if earlier and earlier["key"] == key and not earlier["kept"] and not options.force and earlier.get("checks") == limits:
        return dict(earlier)
    row = {**_row(target, precision, ""), "key": key, "checks": limits}
    try:
        record = build(bundle, target=target, precision=precision, options=options, checks=checks, calibration=calibration)
        if earlier and earlier["kept"] and earlier["key"] == record.key and record == manifest.artefact(target, precision):
            return {**row_of(record), "latency_ms_p50": earlier["latency_ms_p50"]}
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


def _still_kept(manifest: Manifest, row: Row) -> bool:
    """Whether the bundle still has the engine of a row."""
    artefact = manifest.artefact(row["target"], row["precision"])
    return bool(row["kept"]) and artefact is not None and artefact.key == row["key"]


def _runs_here(manifest: Manifest, row: Row) -> bool:
    """Whether this machine can run the engine of a row that was kept."""
    return row["status"] != "built, not run here" and why_not(row["target"], manifest.artefact(row["target"], row["precision"])) is None


def _time_interleaved(manifest: Manifest, rows: Sequence[Row], *, threads: int | None) -> None:
    """Time all kept engines that run here together, and write their latencies into the rows.

    The gates have timed them target by target; only latencies that were measured interleaved can be compared between targets.
    """
    from flowless.engines.loading import load
    from flowless.export.verify.reference import Reference
    from flowless.export.verify.speed import interleaved_ms

    clip = Reference.load(manifest.path_of(manifest.reference), manifest.spec).clips[:1]
    running = {f"{row['target']} {row['precision']}": row for row in rows if row["kept"] and _runs_here(manifest, row)}
    engines = {name: load(manifest.folder, row["target"], row["precision"], threads=threads) for name, row in running.items()}
    for name, latency in interleaved_ms(engines, clip).items():
        running[name]["latency_ms_p50"] = latency


def _row(target: str, precision: str, status: str) -> Row:
    return {"target": target, "precision": precision, "kept": False, "status": status, "gate": "", "key": "", **dict.fromkeys(_FIGURES)}


def _limits(checks: Checks) -> dict[str, Any]:
    """Return the limits of the gates as JSON values, to decide whether an engine that failed them must be tried again."""
    return {**asdict(checks), "data": sha256_of(checks.data) if checks.data else None}


def _first_sentence(error: Exception) -> str:
    return str(error).partition(". ")[0].removesuffix(".")

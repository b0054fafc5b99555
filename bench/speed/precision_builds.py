"""Build every precision of every target: time and size of what is kept, and why the others are not."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowless.engines.bundle.manifest import Target, read_manifest
from flowless.errors import FlowlessError
from flowless.export.build_engine import build
from flowless.export.precision.calibration import Calibration
from flowless.export.precision.graph_cache import precise_graph
from flowless.export.verify.checks import Checks, EngineRefused


def build_precisions(
    bundle: Path, *, targets: Sequence[Target], precisions: Sequence[str], calibration: Calibration | None
) -> list[dict[str, Any]]:
    """Build into a bundle; return one JSON row each, whose `build_s` is the seconds of build and gates without making the graph."""
    # fp32, which the others are compared with, is built first, so that no other build includes its time.
    order = ("fp32", *(name for name in precisions if name != "fp32"))
    rows = [_build_one(bundle, target, precision, calibration) for target in targets for precision in order]
    return [row for row in rows if row["precision"] in precisions]


def _build_one(bundle: Path, target: Target, precision: str, calibration: Calibration | None) -> dict[str, Any]:
    row: dict[str, Any] = {"target": target, "precision": precision, "status": "", "gate": "", "megabytes": None, "build_s": None}
    # Slower engines are measured too. Parity is not a gate: noise and edges of full contrast are foreign to random weights.
    checks = Checks(parity=False, slower=True)
    try:
        precise_graph(read_manifest(bundle), precision, calibration)
        start = time.perf_counter()
        record = build(bundle, target=target, precision=precision, checks=checks, calibration=calibration)
        seconds = time.perf_counter() - start
    except EngineRefused as error:
        return {**row, "status": f"not kept: {error.short}", "gate": error.gate}
    except FlowlessError as error:
        return {**row, "status": f"not built: {str(error).replace(f'{bundle.parent}{os.sep}', '').split('. ')[0]}"}
    files = read_manifest(bundle).files
    megabytes = round(sum(files[name].bytes for name in record.files) / 1e6, 3)
    return {**row, "status": record.status, "megabytes": megabytes, "build_s": round(seconds, 2)}

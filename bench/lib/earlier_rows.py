"""Rows of an earlier result of the same bench, for systems that are not trained again."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from flowless.errors import FlowlessError

#: Settings that say how a bench was run, not what it measures.
_RUNNING = {"jobs", "busy_before"}
#: Bench -> what its table, page and goals read of a row, apart from what is measured anew.
_ROW = {
    "systems": {"system", "base", "control", "about", "seeds", "top1", "spread", "train_top1", "pairs"},
    "real": {
        *("system", "about", "clip", "seeds", "top1", "spread", "mean_class", "opposite_top1", "reversed_top1", "shuffled_top1"),
        *("train_top1", "opposites", "per_class"),
    },
}


def earlier_rows(path: Path | None, *, benchmark: str, settings: Mapping[str, Any], known: Collection[str]) -> list[dict[str, Any]]:
    """Return the rows of an earlier result that was made under the same settings; none without a file.

    Each has the `environment` that it was trained in; the rows of a result's own run have none, since it is the result's.

    Args:
        path: What the bench wrote.
        benchmark: The bench's name.
        settings: The new run's `settings`, as far as they are known before it; what they lack is not compared.
        known: Systems of which rows are taken.

    Raises:
        FlowlessError: The file cannot be read, is no result of this bench, or a setting differs: each is named with both values.
    """
    if path is None:
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlowlessError(
            f"--earlier {path}: cannot be read ({error}). Give the JSON that `flowless bench {benchmark}` wrote."
        ) from error
    if not _is_result(document, benchmark):
        raise FlowlessError(f"--earlier {path}: this is no result of `flowless bench {benchmark}`. Give the JSON that it wrote.")
    # JSON has no tuples.
    here = json.loads(json.dumps({name: value for name, value in settings.items() if name not in _RUNNING}))
    before, now = _flat(document["settings"]), _flat(here)
    differ = [name for name, value in now.items() if before.get(name) != value]
    if differ:
        raise FlowlessError(
            f"--earlier {path}: its rows were made under other settings: "
            + "; ".join(f"{name} {before.get(name)}, here {now[name]}" for name in differ)
            + ". Set these alike, or leave --earlier out and train every system."
        )
    return [{"environment": document["environment"], **row} for row in document["systems"] if row["system"] in known]


def in_order(rows: Iterable[dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """Return rows in the order of the systems' names; of two rows of one system the later one."""
    found = {row["system"]: row for row in rows}
    return [found[name] for name in names if name in found]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {inner: found for key, part in value.items() for inner, found in _flat(part, f"{name}.{key}" if name else key).items()}
    return {name: value}


def _is_result(document: Any, benchmark: str) -> bool:
    if not (isinstance(document, dict) and document.get("benchmark") == benchmark):
        return False
    if not all(isinstance(document.get(name), kind) for name, kind in (("settings", dict), ("environment", dict), ("systems", list))):
        return False
    return all(isinstance(row, dict) and _ROW[benchmark] <= row.keys() and isinstance(row["system"], str) for row in document["systems"])

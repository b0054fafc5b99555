"""Compare what a run measured with the project's goals; a goal that was not measured is not met."""

from __future__ import annotations

from typing import Any

from rich.table import Table

_MET = {True: "yes", False: "[red]no[/red]", None: "not judged: the machine was busy"}


def goal(what: str, wanted: float, measured: float | None, *, at_most: bool = False) -> dict[str, Any]:
    """Return one JSON row: what was wanted, what was measured, whether that is enough."""
    met = measured is not None and (measured <= wanted if at_most else measured >= wanted)
    return {"goal": what, "wanted": f"{'<=' if at_most else '>='} {wanted:g}", "measured": measured, "met": met}


def goals_table(goals: list[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    table = Table("goal", "wanted", "measured", "met", title="goals")
    for row in goals:
        measured = "not measured" if row["measured"] is None else f"{row['measured']:g}"
        table.add_row(row["goal"], row["wanted"], measured, _MET[row["met"]])
    return table

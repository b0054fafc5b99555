"""The table of sources in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowless.engines.live.outputs.board import Row
from flowless.engines.live.outputs.lines import one_line

if TYPE_CHECKING:
    from rich.table import Table

_COLOURS = {"running": "green", "connecting": "yellow", "waiting": "yellow", "ended": "blue", "failed": "red"}


def source_table(rows: Sequence[Row]) -> Table:
    """Return the table of all sources."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("source", "state", "fps", "scored/s", "dropped", "p50/p99, ms", "label", "score")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        state = f"[{_COLOURS[row.state]}]{row.state}[/]" + (f" {escape(one_line(row.reason))}" if row.reason else "")
        latency = "" if row.p50 is None or row.p99 is None else f"{1000 * row.p50:.0f}/{1000 * row.p99:.0f}"
        label = escape(one_line(row.label))
        table.add_row(
            escape(one_line(row.name)),
            state,
            f"{row.fps:.1f}" if row.fps else "",
            f"{row.scored:.1f}" if row.scored else "",
            str(row.dropped),
            latency,
            f"[bold]{label}[/]" if row.label in row.actions else label,
            f"{row.score:.2f}" if row.label else "",
        )
    return table

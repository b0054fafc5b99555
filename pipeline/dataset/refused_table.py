"""The table of refused videos that several commands print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from flowless.pipeline.dataset.index import Refused

#: Most rows to print; JSON output and the index list all.
_MAX_ROWS = 40


def refused_table(refused: Sequence[Refused], *, title: str) -> list[Table]:
    """Return a table of videos and reasons in a list, which is empty where no video was refused."""
    if not refused:
        return []
    table = Table("video", "reason", title=f"{title}: {len(refused)}")
    for item in refused[:_MAX_ROWS]:
        table.add_row(escape(item.path), escape(item.reason))
    if len(refused) > _MAX_ROWS:
        table.add_row("…", f"and {len(refused) - _MAX_ROWS} more")
    return [table]

"""Tables that more than one command prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from flowless.pipeline.dataset.index import Refused

#: Rows that a screen takes; what was written as JSON or into the index has all.
_SHOWN = 40


def refused_table(refused: Sequence[Refused], *, title: str) -> list[Table]:
    """Return a table of videos and reasons, or nothing where there are none."""
    if not refused:
        return []
    table = Table("video", "reason", title=f"{title}: {len(refused)}")
    for item in refused[:_SHOWN]:
        table.add_row(escape(item.path), escape(item.reason))
    if len(refused) > _SHOWN:
        table.add_row("…", f"and {len(refused) - _SHOWN} more")
    return [table]

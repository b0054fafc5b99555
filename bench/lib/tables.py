"""Show JSON rows as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table


def rows_table(title: str, rows: list[dict[str, Any]], columns: Mapping[str, str] | str) -> Table:
    """Return rows of a document as a table; `columns` maps keys to headings, or names keys that are headings themselves."""
    headings = columns if isinstance(columns, Mapping) else {key: key.replace("_", " ") for key in columns.split()}
    table = Table(title=title)
    for key, heading in headings.items():
        table.add_column(heading, justify="left" if any(isinstance(row.get(key), str) for row in rows) else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in headings))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return escape(str(value))  # pip install 'flowless[bench]' is no markup

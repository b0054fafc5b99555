"""Console output of all commands: tables for people, or one JSON document on standard output for programs."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from flowless.files import json_text

#: Logs and progress go to standard error, so that standard output holds only the result.
log = Console(stderr=True, highlight=False)
_out = Console(highlight=False)


def emit(document: Any, *renderables: RenderableType, as_json: bool) -> None:
    """Print `document` as JSON for programs, or the rich `renderables` for people."""
    if as_json:
        print(json_text(document))
        return
    for renderable in renderables:
        if isinstance(renderable, Table):
            # Fold long cells in a narrow terminal instead of truncating them: commands and paths get copied from tables.
            for column in renderable.columns:
                column.no_wrap, column.overflow = False, "fold"
        _out.print(renderable)


def progress() -> Progress:
    """Return the progress bar that all commands use: description, done/total, elapsed and remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=log,
        transient=not log.is_terminal,
    )

"""The throughput benchmark's document as tables for people."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from flowless.bench.lib.goals import goals_table


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the tables of stages, engines, motion maps, end to end, and goals."""
    settings = document["settings"]
    about = f"{settings['model']}, batch {settings['batch']}, {settings['threads']} threads"
    return [
        _stages(document),
        _engines(document, about),
        *([_builds(document)] if document["builds"] else []),
        rows_table(
            f"the PA op alone, {document['motion_maps'][0].get('maps', '?')} maps",
            document["motion_maps"],
            {"name": "", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "maps_per_s": "maps/s", "max_abs_diff": "difference"},
        ),
        rows_table(
            "end to end, several videos, decoding overlapped",
            document["end_to_end"],
            {
                "name": "",
                "clips_per_s": "clips/s",
                "load_clips_per_s": "loading alone",
                "engine_clips_per_s": "engine alone",
                "share": "of the slower",
                "first_answer_ms": "one video, ms",
            },
        ),
        goals_table(document["goals"]),
    ]


def _stages(document: dict[str, Any]) -> Table:
    title = f"one clip from a video file; decode / libav = {document['libav_ratio']}"
    return rows_table(
        title, document["stages"], {"stage": "", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "clips_per_s": "clips/s", "what": ""}
    )


def _engines(document: dict[str, Any], about: str) -> Table:
    least = ", ".join(f"{name} {value} ms" for name, value in document["bound"]["least_ms_per_clip"].items())
    columns = {
        "name": "",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "clips_per_s": "clips/s",
        "times_eager": "× eager",
        "max_abs_diff": "difference",
        "snr_db": "dB",
        "status": "",
    }
    return rows_table(f"forward: {about}; this processor's bound: {least}", document["engines"], columns)


def _builds(document: dict[str, Any]) -> Table:
    rows = [{"name": f"{row['target']} {row['precision']}", **row} for row in document["builds"]]
    columns = {"name": "", "megabytes": "MB", "graph_s": "cast or quantise, s", "build_s": "build with gates, s", "status": ""}
    return rows_table("building the engines", rows, columns)


def rows_table(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> Table:
    """Return rows of a document as a table; `columns` maps keys to headings."""
    table = Table(title=title)
    for key, name in columns.items():
        text = key in {"name", "stage", "what", "status"}
        table.add_column(name, justify="left" if text else "right", no_wrap=key in {"name", "stage"})
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return escape(str(value))  # a remedy such as pip install 'flowless[bench]' is no markup

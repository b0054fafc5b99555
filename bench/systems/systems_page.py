"""What `flowless bench systems` shows: the page with accuracy over cost, every figure and the goals, and the README's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowless import html_pages, plots
from flowless.bench.lib.system_load import LIMIT

#: One colour a system; neighbours in the table differ in brightness too.
COLOURS = {
    "tsn": "#8a949b",
    "tsm": "#4a5560",
    "disentangling": "#b9812a",
    "pan-lite": "#4aa5cc",
    "pan-full": "#0b5c80",
    "stm": "#c2571a",
    "stm-twins": "#e0a07a",
    "da-tsm": "#5c8f3a",
}


def write_page(path: Path, document: Mapping[str, Any]) -> None:
    """Write the page of a result, and its plot as an SVG file beside it, each whole or not at all; the page needs nothing else."""
    from markupsafe import Markup

    plot = accuracy_over_cost(document["systems"], blind=document["settings"]["blind_to_order"])
    page = html_pages.rendered(
        Path(__file__).with_name("systems.html"),
        plot=Markup(plot),
        rows=document["systems"],
        colours=COLOURS,
        settings=document["settings"],
        goals=document["goals"],
        environment=document["environment"],
        weakest=weakest,
        busy_limit=LIMIT,
    )
    html_pages.write_text(path, page)
    html_pages.write_text(path.with_suffix(".svg"), plot)


def accuracy_over_cost(rows: Sequence[Mapping[str, Any]], *, blind: float) -> str:
    """Draw top-1 over multiplications and over latency, a point a row, as inline SVG.

    Args:
        rows: `system`, `base`, `control`, `top1`, `seeds`, `macs`, `latency_ms` of each.
        blind: The most that a model blind to order can reach.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, panels = plots.subplots(1, 2, size=(11.0, 4.0))
    for axes, key, scale, label in (
        (panels[0], "macs", 1e6, "million multiplications a clip"),
        (panels[1], "latency_ms", 1, "ms a clip"),
    ):
        for row in rows:
            cost, top1, colour = row[key] / scale, row["top1"], COLOURS[row["base"]]
            mark = "D" if row["control"] else "o"
            bars = [[max(0.0, top1 - min(row["seeds"]))], [max(0.0, max(row["seeds"]) - top1)]]
            axes.errorbar(*(cost, top1, bars), fmt=mark, ms=7, color=colour, mew=1.6, capsize=2.5, lw=1.1, zorder=3)
        axes.axhline(blind, color="#888", lw=1, ls="--")
        axes.annotate("all that appearance can give", (0.01, blind + 0.012), xycoords=("axes fraction", "data"), fontsize=8, color="#666")
        axes.set(xscale="log", xlabel=label, ylim=(-0.02, 1.05))
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set(ylabel="top-1")
    names = dict.fromkeys(row["base"] for row in rows)
    marks = [Line2D([], [], ls="", marker="o", ms=7, mew=1.6, color=COLOURS[name], label=name) for name in names]
    if any(row["control"] for row in rows):
        marks.append(Line2D([], [], ls="", marker="D", ms=7, mew=1.6, color="#555", label="control: on more videos"))
    panels[1].legend(handles=marks, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return plots.svg(figure)


def readme_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the evidence table in Markdown, with what it was measured on."""
    settings, rows = document["settings"], document["systems"]
    side, seeds = settings["size"], max(len(row["seeds"]) for row in rows)
    columns = (
        "system",
        "clip",
        "top-1, % ± over the seeds",
        "weakest pair of twins",
        "parameters, M",
        "MMAC a clip",
        "ms a clip, fp32",
        "on",
    )
    lines = [
        f"Moving Shapes from scratch, a quarter of the channels, {side} × {side} pixels: {settings['train_videos']} videos,"
        f" {settings['epochs']} epochs, {seeds} seed{'s' * (seeds > 1)}, the same optimiser and rate for all"
        " (`flowless bench systems`). A model that ignores the order of frames is right half of the time at most.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for row in rows:
        figures = (
            " × ".join(map(str, row["clip"][:2])),
            _told(row, of=seeds),
            weakest(row),
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['macs'] / 1e6:.0f}",
            f"{row['latency_ms']:.1f}",
            row["target"],
        )
        lines.append(f"| {' | '.join((row['system'], *figures))} |")
    controls = [f"`{row['system']}` is {row['about']}" for row in rows if row["control"]]
    return [*lines, "", f"{'; '.join(controls)}."] if controls else lines


def weakest(row: Mapping[str, Any]) -> str:
    """Name the pair of actions that a system tells apart worst, with its top-1; nothing where it knows all."""
    pair = min(row["pairs"], key=row["pairs"].get, default=None)
    return "" if pair is None or row["pairs"][pair] == 1 else f"{pair}, {100 * row['pairs'][pair]:.0f} %"


def _told(row: Mapping[str, Any], *, of: int) -> str:
    count = len(row["seeds"])
    spread = f" ± {100 * row['spread']:.1f}" if count > 1 else ""
    return f"{100 * row['top1']:.1f}{spread}" + ("" if count == of else f" ({count} seed{'s' * (count > 1)})")

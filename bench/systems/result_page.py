"""A comparison's result for people: the page with its plots, the console's table, and the README's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowless import html_pages, plots
from flowless.bench.lib.system_load import LIMIT

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
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


def percent(share: float | None) -> str:
    """Return a share in percent with one decimal; empty for None."""
    return "" if share is None else f"{100 * share:.1f}"


def _lowest(shares: Mapping[str, float], count: int) -> str:
    worst = sorted((share, name) for name, share in shares.items() if share < 1)[:count]
    return "; ".join(f"{name}, {100 * share:.0f} %" for share, name in worst)


#: Heading -> cell: of `bench systems`, of `bench real`, and further columns of the page.
_COSTS: dict[str, Callable[[Row], str]] = {
    "weakest pair of twins": lambda row: _lowest(row["pairs"], 1),
    "parameters, M": lambda row: f"{row['parameters'] / 1e6:.2f}",
    "MMAC a clip": lambda row: f"{row['macs'] / 1e6:.0f}",
    "ms a clip, fp32": lambda row: f"{row['latency_ms']:.1f}",
    "on": lambda row: row["target"],
}
_ORDERS: dict[str, Callable[[Row], str]] = {
    "mean class, %": lambda row: percent(row["mean_class"]),
    "opposite actions, %": lambda row: percent(row["opposite_top1"]),
    "reversed, %": lambda row: percent(row["reversed_top1"]),
    "shuffled, %": lambda row: percent(row["shuffled_top1"]),
}
_DETAILS: dict[str, Callable[[Row], str]] = {
    "seeds, %": lambda row: ", ".join(map(percent, row["seeds"])),
    "training, %": lambda row: percent(row["train_top1"]),
    # Older results of `bench systems` lack these.
    "reversed, %": lambda row: percent(row.get("reversed_top1")),
    "hardest actions": lambda row: _lowest(row.get("per_class", {}), 3),
}


def table_of(document: Row, *, page: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of a result's table; the first cell is the system's name."""
    rows, costs = document["systems"], document["benchmark"] == "systems"
    most = max((len(row["seeds"]) for row in rows), default=1)

    def top1(row: Row) -> str:
        count = len(row["seeds"])
        spread = "" if row["spread"] is None else f" ± {percent(row['spread'])}"
        return percent(row["top1"]) + spread + ("" if count == most else f" ({count} seed{'s' * (count > 1)})")

    columns: dict[str, Callable[[Row], str]] = {"system": lambda row: row["system"]}
    columns |= {"clip": lambda row: " × ".join(map(str, row["clip"][:2]))} if page or costs else {}
    columns |= {"top-1, % ± over the seeds": top1, **(_COSTS if costs else _ORDERS), **(_DETAILS if page else {})}
    return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def console_table(document: Row) -> Table:
    """Return the result for the console."""
    from rich.table import Table

    headings, rows = table_of(document)
    table = Table()
    for heading in headings:
        table.add_column(heading, no_wrap=heading in {"system", "clip"})
    for cells in rows:
        table.add_row(*cells)
    return table


def readme_lines(document: Row) -> list[str]:
    """Return the result in Markdown: what was measured, the table, and what the controls are."""
    headings, rows = table_of(document)
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}", *(f"| {' | '.join(cells)} |" for cells in rows)]
    controls = [f"`{row['system']}` is {row['about']}" for row in document["systems"] if row.get("control")]
    return [_intro(document), "", *lines, *(["", f"{'; '.join(controls)}."] if controls else [])]


def write_page(path: Path, document: Row) -> None:
    """Write the page of a result, and its plot, if any, as an SVG file beside it, each whole or not at all."""
    page, plot = render(document)
    html_pages.write_text(path, page)
    if plot:
        html_pages.write_text(path.with_suffix(".svg"), plot)


def render(document: Row) -> tuple[str, str]:
    """Return the page of a result as HTML that refers to nothing outside itself, and its plot as SVG, empty without opposite actions."""
    from markupsafe import Markup

    (headings, cells), settings, rows = table_of(document, page=True), document["settings"], document["systems"]
    if document["benchmark"] == "systems":
        plot = accuracy_over_cost(rows, blind=settings["blind_to_order"])
    else:
        plot = opposites_plot(rows, settings["opposites"]) if settings["opposites"] else ""
    busy = settings.get("busy_before") or 0
    page = html_pages.rendered(
        Path(__file__).with_name("result_page.html"),
        benchmark=document["benchmark"],
        intro=_intro(document).replace("`", ""),
        plot=Markup(plot),
        headings=headings,
        rows=[(COLOURS[row.get("base", row["system"])], row, line) for row, line in zip(rows, cells, strict=True)],
        goals=document["goals"],
        environment=document["environment"],
        busy=busy if busy > LIMIT else None,
    )
    return page, plot


def _intro(document: Row) -> str:
    settings, seeds = document["settings"], max(len(row["seeds"]) for row in document["systems"])
    plural = f"{seeds} seed{'s' * (seeds > 1)}"
    if document["benchmark"] == "systems":
        return (
            f"Moving Shapes from scratch, a quarter of the channels, {settings['size']} × {settings['size']} pixels:"
            f" {settings['train_videos']} videos, {settings['epochs']} epochs, {plural}, the same optimiser and rate for all"
            " (`flowless bench systems`). A model that ignores the order of frames is right half of the time at most."
        )
    recipe = settings["recipe"]
    return (
        f"Real clips of people, from scratch: {settings['train']['videos']} training videos of {settings['labels']} actions, tested on"
        f" {settings['test']['videos']} videos of other people; {recipe['size']} × {recipe['size']} pixels, {recipe['epochs']} epochs,"
        f" {plural}, trained alike (`flowless bench real`). Opposite actions differ in direction alone; reversed and shuffled: the same"
        " clips with their frames in another order."
    )


def accuracy_over_cost(rows: Sequence[Row], *, blind: float) -> str:
    """Draw top-1 over multiplications and over latency as inline SVG; `blind` is the most that a model blind to order can reach."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, panels = plots.subplots(1, 2, size=(11.0, 4.0))
    for axes, key, scale, label in zip(panels, ("macs", "latency_ms"), (1e6, 1), ("million multiplications", "ms"), strict=True):
        for row in rows:
            top1, mark = row["top1"], "D" if row["control"] else "o"
            bars = [[max(0.0, top1 - min(row["seeds"]))], [max(0.0, max(row["seeds"]) - top1)]]
            axes.errorbar(row[key] / scale, top1, bars, fmt=mark, ms=7, color=COLOURS[row["base"]], capsize=2.5, lw=1.1, zorder=3)
        axes.axhline(blind, color="#888", lw=1, ls="--")
        axes.annotate("all that appearance can give", (0.01, blind + 0.012), xycoords=("axes fraction", "data"), fontsize=8, color="#666")
        axes.set(xscale="log", xlabel=f"{label} a clip", ylabel="top-1", ylim=(-0.02, 1.05))
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    marks = [Line2D([], [], ls="", marker="o", color=COLOURS[name], label=name) for name in dict.fromkeys(row["base"] for row in rows)]
    if any(row["control"] for row in rows):
        marks.append(Line2D([], [], ls="", marker="D", color="#555", label="control: on more videos"))
    panels[1].legend(handles=marks, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return plots.svg(figure)


def opposites_plot(rows: Sequence[Row], pairs: Sequence[Sequence[str]]) -> str:
    """Draw how the videos of each action of the pairs were classified, a panel a system, as inline SVG: shares in percent."""
    names, kinds = [name for pair in pairs for name in pair], ("right", "opposite", "other")
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure, panels = plots.subplots(lines, columns, size=(2.2 + 2.6 * columns, 0.5 + (0.7 + 0.27 * len(names)) * lines))
    panels = np.atleast_1d(panels).ravel()
    for number, (row, axes) in enumerate(zip(rows, panels, strict=False)):
        counts = np.array([[row["opposites"][name][kind] for kind in kinds] for name in names], float)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (line, column), value in np.ndenumerate(shares):
            colour = "white" if value > 0.55 else plots.INK
            axes.text(column, line, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
        for edge in range(2, len(names), 2):
            axes.axhline(edge - 0.5, color="#8a949b", lw=1)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_yticks(range(len(names)), [""] * len(names) if number % columns else names)
        axes.set_title(f"{row['system']}: {percent(row['opposite_top1'])} %", fontsize=10)
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    return plots.svg(figure)

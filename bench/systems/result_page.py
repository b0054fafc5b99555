"""The table of a comparison's result, and the page with its plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowless import html_pages, plots
from flowless.bench.systems.system_list import SYSTEMS

Row = Mapping[str, Any]
_COLOURS = ("#8a949b", "#4a5560", "#b9812a", "#4aa5cc", "#0b5c80", "#c2571a", "#e0a07a", "#5c8f3a")
#: One colour a system, without the controls; neighbours in the table differ in brightness too.
COLOURS = dict(zip((name for name, system in SYSTEMS.items() if not system.of), _COLOURS, strict=True))


_INTROS = {
    "systems": "Moving Shapes from scratch, a quarter of the channels, {size} × {size} pixels: {train_videos} videos, {epochs} epochs,"
    " {seeds}, the same optimiser and rate for all (`flowless bench systems`). A model that ignores the order of frames is right half of"
    " the time at most.",
    "real": "Real clips of people, from scratch: {train[videos]} training videos of {labels} actions, tested on {test[videos]} videos of"
    " other people; {recipe[size]} × {recipe[size]} pixels, {recipe[epochs]} epochs, {seeds}, trained alike (`flowless bench real`)."
    " Opposite actions differ in direction alone; reversed and shuffled: the same clips with their frames in another order.",
}


def percent(share: float | None) -> str:
    """Return a share in percent with one decimal; empty for None."""
    return "" if share is None else f"{100 * share:.1f}"


def lowest(shares: Mapping[str, float], count: int) -> str:
    """Return the names of the lowest shares below 1, with the shares in percent."""
    worst = sorted((share, name) for name, share in shares.items() if share < 1)[:count]
    return "; ".join(f"{name}, {100 * share:.0f} %" for share, name in worst)


def table_of(document: Row) -> list[dict[str, str]]:
    """Return the rows of a result's table: heading -> cell."""
    most = max((len(row["seeds"]) for row in document["systems"]), default=1)
    cells_of = _costs if document["benchmark"] == "systems" else _orders
    return [{"system": row["system"], **cells_of(row, _top1(row, most))} for row in document["systems"]]


def _top1(row: Row, most: int) -> str:
    """Return the mean and the spread over the seeds, and their number where other systems have more."""
    count, spread = len(row["seeds"]), "" if row["spread"] is None else f" ± {percent(row['spread'])}"
    return percent(row["top1"]) + spread + ("" if count == most else f" ({count} seed{'s' * (count > 1)})")


def _costs(row: Row, top1: str) -> dict[str, str]:
    return {
        "clip": " × ".join(map(str, row["clip"][:2])),
        "top-1, % ± over the seeds": top1,
        "least accurate pair of actions": lowest(row["pairs"], 1),
        "parameters, M": f"{row['parameters'] / 1e6:.2f}",
        "MMAC a clip": f"{row['macs'] / 1e6:.0f}",
        "ms a clip, fp32": f"{row['latency_ms']:.1f}",
        "on": row["target"],
    }


def _orders(row: Row, top1: str) -> dict[str, str]:
    return {
        "top-1, % ± over the seeds": top1,
        "mean class, %": percent(row["mean_class"]),
        "opposite actions, %": percent(row["opposite_top1"]),
        "reversed, %": percent(row["reversed_top1"]),
        "shuffled, %": percent(row["shuffled_top1"]),
    }


def intro_of(document: Row) -> str:
    """Return what was measured, in Markdown."""
    seeds = max(len(row["seeds"]) for row in document["systems"])
    return _INTROS[document["benchmark"]].format_map({**document["settings"], "seeds": f"{seeds} seed{'s' * (seeds > 1)}"})


def readme_lines(document: Row) -> list[str]:
    """Return the result in Markdown: what was measured, the table, and what the controls are."""
    table = table_of(document)
    lines = [f"| {' | '.join(table[0])} |", f"|{'---|' * len(table[0])}", *(f"| {' | '.join(row.values())} |" for row in table)]
    controls = [f"`{row['system']}` is {row['about']}" for row in document["systems"] if row.get("control")]
    return [intro_of(document), "", *lines, *(["", f"{'; '.join(controls)}."] if controls else [])]


def write_page(path: Path, document: Row) -> None:
    """Write the page of a result, and its plot, if any, as an SVG file beside it, each whole or not at all."""
    page, plot = render(document)
    html_pages.write_text(path, page)
    if plot:
        html_pages.write_text(path.with_suffix(".svg"), plot)


def render(document: Row) -> tuple[str, str]:
    """Return the page of a result as HTML that refers to nothing outside itself, and its plot as SVG, empty without opposite actions."""
    from markupsafe import Markup

    settings, rows = document["settings"], document["systems"]
    if document["benchmark"] == "systems":
        plot = accuracy_over_cost(rows, blind=settings["blind_to_order"])
    else:
        plot = opposites_plot(rows, settings["opposites"]) if settings["opposites"] else ""
    page = html_pages.rendered(
        Path(__file__).with_name("result_page.html"),
        document=document,
        intro=intro_of(document).replace("`", ""),
        plot=Markup(plot),
        rows=list(zip(rows, table_of(document), strict=True)),
        colours=COLOURS,
        percent=percent,
        lowest=lowest,
    )
    return page, plot


def accuracy_over_cost(rows: Sequence[Row], *, blind: float) -> str:
    """Draw top-1 over multiplications and over latency as inline SVG; `blind` is the most that a model blind to order can reach."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, panels = plots.subplots(1, 2, size=(11.0, 4.0))
    for axes, key, scale, label in zip(panels, ("macs", "latency_ms"), (1e6, 1), ("million multiplications", "ms"), strict=True):
        for row in rows:
            top1, style = row["top1"], {"fmt": "D" if row["control"] else "o", "color": COLOURS[row["base"]], "label": row["system"]}
            bars = [[max(0.0, top1 - min(row["seeds"]))], [max(0.0, max(row["seeds"]) - top1)]]
            axes.errorbar(row[key] / scale, top1, bars, **style, ms=7, capsize=2.5, lw=1.1, zorder=3)
        axes.axhline(blind, color="#888", lw=1, ls="--")
        axes.annotate("limit of single frames", (0.01, blind + 0.012), xycoords=("axes fraction", "data"), fontsize=8, color="#666")
        axes.set(xscale="log", xlabel=f"{label} a clip", ylabel="top-1", ylim=(-0.02, 1.05))
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return plots.svg(figure)


def opposites_plot(rows: Sequence[Row], pairs: Sequence[Sequence[str]]) -> str:
    """Draw what the videos of each action of the pairs were classified as, three columns a system, as inline SVG: shares in percent."""
    names, kinds = [name for pair in pairs for name in pair], ("right", "opposite", "other")
    counts = np.array([[[row["opposites"][name][kind] for kind in kinds] for row in rows] for name in names], float)
    shares = (counts / np.maximum(counts.sum(2, keepdims=True), 1)).reshape(len(names), -1)
    figure, axes = plots.subplots(1, 1, size=(1.5 + 1.5 * len(rows), 1.2 + 0.3 * len(names)))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (line, column), value in np.ndenumerate(shares):
        axes.text(column, line, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color="white" if value > 0.55 else plots.INK)
    for number, row in enumerate(rows):
        axes.text(3 * number + 1, -0.7, f"{row['system']}: {percent(row['opposite_top1'])} %", ha="center", fontsize=9)
        axes.axvline(3 * number - 0.5, color="#8a949b", lw=1)
    axes.set_xticks(range(len(kinds) * len(rows)), kinds * len(rows), rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    return plots.svg(figure)

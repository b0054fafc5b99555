"""What `flowless bench real` shows: the page with top-1, the controls and the opposite actions, and the README's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowless import html_pages, plots
from flowless.bench.systems.systems_page import COLOURS

#: What the plot of the controls draws: figure of a row -> its mark and name.
_ORDERS = (("top1", "o", "in order"), ("reversed_top1", "<", "reversed"), ("shuffled_top1", "x", "shuffled"))


def write_page(path: Path, document: Mapping[str, Any]) -> None:
    """Write the page of a result, and its plot as an SVG file beside it, each whole or not at all; the page needs nothing else."""
    from markupsafe import Markup

    rows = document["systems"]
    plot = orders_plot(rows)
    pairs = opposites_plot(rows, document["settings"]["opposites"]) if document["settings"]["opposites"] else ""
    page = html_pages.rendered(
        Path(__file__).with_name("real.html"),
        plot=Markup(plot),
        opposites=Markup(pairs),
        rows=rows,
        colours=COLOURS,
        settings=document["settings"],
        goals=document["goals"],
        environment=document["environment"],
        percent=percent,
        hardest=hardest,
    )
    html_pages.write_text(path, page)
    html_pages.write_text(path.with_suffix(".svg"), pairs or plot)


def orders_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw each system's top-1 on the clips in order, reversed and shuffled, as inline SVG; a bar from the lowest seed to the highest."""
    figure, axes = plots.subplots(1, 1, size=(9.6, 1.2 + 0.42 * len(rows)))
    for place, row in enumerate(rows):
        axes.plot([100 * min(row["seeds"]), 100 * max(row["seeds"])], [place, place], color=COLOURS[row["system"]], lw=5, alpha=0.35)
        for key, mark, name in _ORDERS:
            axes.plot(100 * row[key], place, mark, color=COLOURS[row["system"]], ms=8, mew=2, label=name if not place else None)
    axes.set_yticks(range(len(rows)), [row["system"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="top-1, %", xlim=(0, 100))
    legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_color(plots.INK)  # type: ignore[union-attr]
    return plots.svg(figure)


def opposites_plot(rows: Sequence[Mapping[str, Any]], pairs: Sequence[Sequence[str]]) -> str:
    """Draw what the videos of each action with an opposite were taken for, a panel a system, as inline SVG.

    Each cell is a share of the row's videos in percent, over all seeds: right, taken for the opposite, for any other action.
    """
    names = [name for pair in pairs for name in pair]
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure, panels = plots.subplots(lines, columns, size=(2.2 + 2.6 * columns, 0.5 + (0.7 + 0.27 * len(names)) * lines))
    panels = np.atleast_1d(panels).ravel()
    kinds = ("right", "opposite", "other")
    for number, axes in enumerate(panels):
        if number >= len(rows):
            axes.set_visible(False)
            continue
        counts = np.array([[rows[number]["opposites"][name][kind] for kind in kinds] for name in names], float)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (line, column), value in np.ndenumerate(shares):
            colour = "white" if value > 0.55 else plots.INK
            axes.text(column, line, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
        for edge in range(2, len(names), 2):
            axes.axhline(edge - 0.5, color="#8a949b", lw=1)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_yticks(range(len(names)), names if number % columns == 0 else [""] * len(names))
        axes.set_title(f"{rows[number]['system']}: {percent(rows[number]['opposite_top1'])} %", fontsize=10)
    return plots.svg(figure)


def readme_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the evidence table in Markdown, with what it was measured on."""
    settings, rows = document["settings"], document["systems"]
    recipe, seeds = settings["recipe"], max(len(row["seeds"]) for row in rows)
    columns = ("system", "top-1, % ± over the seeds", "mean class, %", "opposite actions, %", "reversed, %", "shuffled, %")
    lines = [
        f"Real clips of people, from scratch: {settings['train']['videos']} training videos of {settings['labels']} actions, tested on"
        f" {settings['test']['videos']} videos of other people; {recipe['size']} × {recipe['size']} pixels, {recipe['epochs']} epochs,"
        f" {seeds} seed{'s' * (seeds > 1)}, trained alike (`flowless bench real`). Opposite actions differ in direction alone; reversed and"
        " shuffled: the same clips with their frames in another order.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for row in rows:
        count = len(row["seeds"])
        top1 = percent(row["top1"]) + ("" if row["spread"] is None else f" ± {100 * row['spread']:.1f}")
        top1 += "" if count == seeds else f" ({count} seed{'s' * (count > 1)})"
        figures = (percent(row[name]) for name in ("mean_class", "opposite_top1", "reversed_top1", "shuffled_top1"))
        lines.append(f"| {' | '.join((row['system'], top1, *figures))} |")
    return lines


def percent(share: float | None) -> str:
    """Return a share in percent, of one decimal; nothing where there is none."""
    return "" if share is None else f"{100 * share:.1f}"


def hardest(row: Mapping[str, Any], *, count: int = 3) -> str:
    """Name the actions that a system knows worst, with the share of their videos that are right."""
    worst = sorted(row["per_class"].items(), key=lambda item: item[1])[:count]
    return ", ".join(f"{label} {100 * share:.0f} %" for label, share in worst)

"""Plots for reports and evaluations: matplotlib figures as inline SVG, and a confusion matrix as a file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowless.errors import FlowlessError
from flowless.files import whole_file
from flowless.html_pages import image_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: One colour per model, the same in every plot; safe for red-green colour blindness.
COLOURS = {"pan-lite": "#0b6e99", "tsn": "#c2571a"}
INK = "#22303a"
_FORMATS = (".png", ".svg", ".pdf", ".jpg")
#: Most classes for which a confusion matrix has class names, and percentages in its cells.
_NAMED_CLASSES, _NUMBERED_CLASSES = 60, 30


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], *, chance: float, ceiling: float) -> str:
    """Draw loss and top-1 over epochs as inline SVG.

    Args:
        histories: model -> its rows of metrics.csv (`epoch`, `train_loss`, `val_loss`, `train_top1`, `val_top1`).
        chance: top-1 of random guesses.
        ceiling: highest top-1 that a model can reach by single frames.
    """
    figure, (left, right) = subplots(1, 2, size=(9.6, 3.2))
    for name, rows in histories.items():
        epochs = [row["epoch"] + 1 for row in rows]
        colour = COLOURS.get(name, INK)
        for axes, key in ((left, "loss"), (right, "top1")):
            axes.plot(epochs, [row[f"train_{key}"] for row in rows], color=colour, ls=":", lw=1.4, label=f"{name}, training")
            axes.plot(epochs, [row[f"val_{key}"] for row in rows], color=colour, lw=2, marker="o", ms=3.5, label=f"{name}, validation")
    left.set(title="cross entropy", xlabel="epoch")
    right.set(title="top-1", xlabel="epoch", ylim=(-0.02, 1.02))
    # Labels beside the axes, where no curve overlaps them.
    for height, colour, text in ((ceiling, "#888", "limit of\nsingle\nframes"), (chance, "#bbb", "chance")):
        right.axhline(height, color=colour, lw=1, ls="--")
        right.annotate(text, (1.01, height), xycoords=("axes fraction", "data"), va="center", fontsize=8, color="#666")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return svg(figure)


def confusion(matrix: np.ndarray, labels: Sequence[str], *, title: str, group: int = 1) -> str:
    """Draw a confusion matrix of counts `[true, predicted]` as inline SVG, each row in percent of its videos.

    Lines separate groups of `group` neighbouring classes.
    """
    figure = _confusion_figure(matrix, labels, title=title)
    for edge in range(group, len(labels), group) if group > 1 else ():
        figure.axes[0].axhline(edge - 0.5, color="#c9d3da", lw=0.8)
        figure.axes[0].axvline(edge - 0.5, color="#c9d3da", lw=0.8)
    return svg(figure)


def save_confusion(path: Path, matrix: np.ndarray, labels: Sequence[str], *, title: str) -> None:
    """Draw a confusion matrix into a file; check its name with `check_picture_path` first."""
    with whole_file(path) as draft:
        _confusion_figure(matrix, labels, title=title).savefig(draft, dpi=120)


def check_picture_path(path: Path) -> None:
    """Refuse a file name that does not end in the suffix of a picture format."""
    if path.suffix.lower() not in _FORMATS:
        raise FlowlessError(
            f"{path}: {path.suffix!r} is not the suffix of a picture format. Name a file that ends in {', '.join(_FORMATS)}."
        )


def _confusion_figure(matrix: np.ndarray, labels: Sequence[str], *, title: str) -> Figure:
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    count = len(labels)
    side = 1.7 + 0.26 * min(max(count, 6), 60)
    figure, axes = subplots(1, 1, size=(side, side))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if count <= _NAMED_CLASSES:
        axes.set_xticks(range(count), labels, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(count), labels, fontsize=8)
    if count <= _NUMBERED_CLASSES:
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color="white" if share > 0.55 else INK)
    return figure


def vap_weights(weights: Mapping[str, np.ndarray], *, timescales: Sequence[str]) -> str:
    """Draw VAP's mean weight of each vector (columns) for each action (rows) as inline SVG (PAN, section IV-B)."""
    table = np.stack(list(weights.values()))
    figure, axes = subplots(1, 1, size=(5.6, 4.2))
    image = axes.imshow(table, cmap="Purples", vmin=0, aspect="auto")
    axes.set_xticks(range(len(timescales)), timescales, fontsize=8, rotation=30, ha="right")
    axes.set_yticks(range(len(weights)), list(weights), fontsize=8)
    figure.colorbar(image, ax=axes, label="mean weight")
    return svg(figure)


def stage_bars(seconds: Mapping[str, float]) -> str:
    """Draw the seconds that each stage took as inline SVG, in their order."""
    figure, axes = subplots(1, 1, size=(9.6, 0.6 + 0.3 * len(seconds)))
    names, values = list(seconds), list(seconds.values())
    axes.barh(names, values, color=COLOURS["pan-lite"], height=0.62)
    for row, value in enumerate(values):
        axes.text(value, row, f" {value:.1f} s", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", xlim=(0, max(values, default=1) * 1.12))
    return svg(figure)


def engine_bars(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the latency of each engine that was kept and timed as inline SVG, labelled with its top-1.

    Args:
        rows: `target`, `precision`, `latency_ms_p50`, `top1`, `kept`, `recommended` of each engine, those of a target adjacent. Engines
            that were not kept are left out: they were timed separately, so their latencies do not compare.
    """
    timed = [row for row in rows if row["kept"] and row["latency_ms_p50"] is not None]
    figure, axes = subplots(1, 1, size=(9.6, 0.8 + 0.32 * len(timed)))
    longest = max((row["latency_ms_p50"] for row in timed), default=1.0)
    for place, row in enumerate(timed):
        colour = COLOURS["tsn"] if row["recommended"] else COLOURS["pan-lite"]
        value = row["latency_ms_p50"]
        axes.barh(place, value, color=colour, height=0.62)
        label = [f"{value:.2f} ms"]
        label += [] if row["top1"] is None else [f"top-1 {100 * row['top1']:.1f} %"]
        label += ["recommended"] * row["recommended"]
        axes.text(value + longest / 100, place, ", ".join(label), va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(timed)), [f"{row['target']} {row['precision']}" for row in timed], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="median latency per clip, ms", xlim=(0, longest * 1.4))
    return svg(figure)


def motion_strip(frames: np.ndarray, maps: np.ndarray, *, scale: int = 2) -> str:
    """Return frames above their PA maps as one picture, a data URI for an `img`.

    Args:
        frames: uint8 `[T, H, W, 3]`.
        maps: `[T, H, W]`, PA from each frame to the next; the colour scale ends at the largest value.
        scale: Factor of enlargement.
    """
    from flowless.export.explain.cue_pictures import heat

    rows = [np.concatenate(list(part), axis=1) for part in (frames, heat(maps, reach=max(float(maps.max()), 1e-9)))]
    return image_uri(np.concatenate(rows, axis=0).repeat(scale, axis=0).repeat(scale, axis=1), lossless=True)


def subplots(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Figure, Any]:
    """Make a figure in the project's style, without pyplot, which needs global state and a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns)
    for one in np.atleast_1d(axes).ravel():
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8, colors=INK)
        one.title.set_fontsize(10)
    return figure, axes


def svg(figure: Figure) -> str:
    """Return a figure as inline SVG; deterministic."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "flowless"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()[stream.getvalue().index("<svg") :]

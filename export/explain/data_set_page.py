"""What `flowless explain --data` shows, as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flowless import __version__, html_pages
from flowless.export.explain.explain_data_set import DataSetExplanation, timescales_by_class
from flowless.export.explain.feature_map import LEAST_VIDEOS, NEIGHBOURS
from flowless.train.evaluation import metrics

#: Classes up to which all are shown at once; of more the first and the last half as many, and all on a click.
_OPEN_CLASSES = 40
#: Classes up to which each has a colour of its own on the map; of more the others' points are grey.
_COLOURED = 18
_GREY = "#b9c2c8"
#: Side of a map, in units of its drawing.
_SIDE = 400


def write_page(path: Path, explanation: DataSetExplanation) -> None:
    """Write the page, whole or not at all."""
    html_pages.write_text(path, render(explanation))


def render(explanation: DataSetExplanation) -> str:
    """Return the page's HTML; it refers to nothing outside itself."""
    colours = _colours(explanation)
    rows = _rows(explanation)
    half = _OPEN_CLASSES // 2
    parts = [rows] if len(rows) <= _OPEN_CLASSES else [rows[:half], rows[-half:]]
    return html_pages.rendered(
        Path(__file__).with_name("data_set_page.html"),
        it=explanation,
        name=Path(explanation.data).name,
        models=[_model(explanation, place) for place in range(len(explanation.models))],
        parts=parts,
        rows=rows,
        legend=[{"label": label, "colour": colour} for label, colour in sorted(colours.items())],
        maps=[_points(explanation, place, colours) for place in range(len(explanation.maps))],
        side=_SIDE,
        chance=_chance(explanation),
        neighbours=NEIGHBOURS,
        least=LEAST_VIDEOS,
        grey=_GREY,
        weights=_weights(explanation),
        version=__version__,
    )


def _model(explanation: DataSetExplanation, place: int) -> dict[str, Any]:
    seen = explanation.models[place]
    return {
        "name": seen.model,
        "source": seen.source,
        "top1": metrics.top1(seen.scores, seen.labels),
        "mean": metrics.mean_class_accuracy(seen.scores, seen.labels),
        "same": explanation.same_class[place] if explanation.same_class else None,
    }


def _rows(explanation: DataSetExplanation) -> list[dict[str, Any]]:
    """Return the classes' rows; bars of gains begin in the middle, those of one model's accuracy at the left."""
    most = max((abs(item.gain) for item in explanation.classes if item.gain is not None), default=0.0) or 1.0
    rows = []
    for item in explanation.classes:
        value = item.accuracy if item.gain is None else item.gain
        if item.gain is None:
            left, width = 0.0, 100 * value
        else:
            width = 50 * abs(value) / most
            left = 50 - (width if value < 0 else 0)
        rows.append({"item": item, "value": 100 * value, "left": left, "width": width, "worse": value < 0})
    return rows


def _colours(explanation: DataSetExplanation) -> dict[str, str]:
    """Return the classes that have a colour: all, or where they are many those whose accuracy differs most, else the most frequent."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    seen = explanation.models[0]
    sampled = {seen.names[label] for label in seen.labels[explanation.sample]}
    classes = [item for item in explanation.classes if item.label in sampled]
    if len(classes) > _COLOURED:
        classes = sorted(classes, key=lambda item: (-abs(item.gain or 0.0), -item.videos, item.label))[:_COLOURED]
    # Tab20 lies in pairs of a dark and a light one: first all dark ones, then all light ones, and without its greys.
    order = [place for first in (0, 1) for place in range(first, 20, 2) if place not in {14, 15}]
    shades = [to_hex(colormaps["tab20"](place)) for place in order]
    return dict(zip(sorted(item.label for item in classes), shades, strict=False))


def _points(explanation: DataSetExplanation, place: int, colours: dict[str, str]) -> list[dict[str, Any]]:
    """Return a map's points: filled where the answer is right, a ring where it is wrong; those of no colour lie below."""
    seen = explanation.models[place]
    answers = seen.scores.argmax(1)
    points = []
    for row, (x, y) in zip(explanation.sample, explanation.maps[place], strict=True):
        label, answer = seen.names[seen.labels[row]], seen.names[answers[row]]
        points.append(
            {
                "x": _SIDE / 2 * (1 + 0.97 * x),
                "y": _SIDE / 2 * (1 - 0.97 * y),
                "colour": colours.get(label, _GREY),
                "right": label == answer,
                "title": f"{label}{'' if label == answer else f', answered {answer}'}: {seen.ids[row]}",
            }
        )
    return sorted(points, key=lambda point: point["colour"] != _GREY)


def _chance(explanation: DataSetExplanation) -> float:
    """Return the share of same-class videos that features without a pattern would have beside each."""
    counts = np.unique(explanation.models[0].labels[explanation.sample], return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / max(1, counts.sum() * (counts.sum() - 1)))


def _weights(explanation: DataSetExplanation) -> list[dict[str, Any]]:
    """Return each VAP head's table: a row a class, a column a vector, and the mean over all videos."""
    tables = []
    for seen in explanation.models:
        for branch, classes in timescales_by_class(seen).items():
            mean = seen.timescale_weights[branch].mean(0).tolist()
            names = list(next(iter(classes.values())))
            rows = [{"label": label, "weights": list(weights.values())} for label, weights in sorted(classes.items())]
            tables.append({"model": seen.model, "branch": branch, "names": names, "mean": mean, "rows": rows})
    return tables

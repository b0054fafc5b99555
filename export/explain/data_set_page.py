"""Render the explanation of a data set as a self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowless.export.explain.explain_data_set import SEED, DataSetExplanation
from flowless.export.explain.tsne_map import MIN_VIDEOS, NEIGHBOURS, chance_share
from flowless.html_pages import rendered

#: Classes that the table shows at once; of more, the first and the last half as many, and all in a fold-out.
_SHOWN_CLASSES = 40
#: Classes with a colour on the map; of more, the others' points are grey.
_COLOURED_CLASSES = 18
_GREY = "#b9c2c8"
#: Side of a map, in SVG units.
_SIDE = 400


def render(explanation: DataSetExplanation) -> str:
    """Return the page's HTML, which loads nothing from outside."""
    colours = _colours(explanation)
    rows = _rows(explanation)
    half = _SHOWN_CLASSES // 2
    return rendered(
        Path(__file__).with_name("data_set_page.html"),
        explanation=explanation,
        name=Path(explanation.data).name,
        models=explanation.models,
        headings=explanation.headings,
        parts=[rows] if len(rows) <= _SHOWN_CLASSES else [rows[:half], rows[-half:]],
        rows=rows,
        legend=[{"label": label, "colour": colour} for label, colour in sorted(colours.items())],
        maps=[_points(explanation, number, colours) for number in range(len(explanation.maps))],
        side=_SIDE,
        chance=chance_share(explanation.models[0].labels[explanation.sample]),
        neighbours=NEIGHBOURS,
        min_videos=MIN_VIDEOS,
        seed=SEED,
        grey=_GREY,
        tables=_weight_tables(explanation),
    )


def _rows(explanation: DataSetExplanation) -> list[dict[str, Any]]:
    """Return the classes' rows: bars of gains begin in the middle, those of a single model's accuracy at the left; in percent."""
    largest = max((abs(item.gain) for item in explanation.classes if item.gain is not None), default=0.0) or 1.0
    rows = []
    for item in explanation.classes:
        if item.gain is None:
            left, width = 0.0, 100 * item.accuracy
        else:
            width = 50 * abs(item.gain) / largest
            left = 50 - width if item.gain < 0 else 50
        rows.append({"item": item, "left": left, "width": width})
    return rows


def _colours(explanation: DataSetExplanation) -> dict[str, str]:
    """Return the colours of classes on the map: of many classes, those with the largest gains or losses, or else the most videos."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    outputs = explanation.models[0]
    sampled = {outputs.model.labels[label] for label in outputs.labels[explanation.sample]}
    classes = [item for item in explanation.classes if item.label in sampled]
    if len(classes) > _COLOURED_CLASSES:
        classes = sorted(classes, key=lambda item: (-abs(item.gain or 0.0), -item.videos, item.label))[:_COLOURED_CLASSES]
    # Tab20 has pairs of a dark and a light colour: first all dark ones, then all light ones, without its greys.
    order = [place for first in (0, 1) for place in range(first, 20, 2) if place not in {14, 15}]
    shades = [to_hex(colormaps["tab20"](place)) for place in order]
    return dict(zip(sorted(item.label for item in classes), shades, strict=False))


def _points(explanation: DataSetExplanation, number: int, colours: dict[str, str]) -> list[dict[str, Any]]:
    """Return a map's points; the grey ones come first, so that the coloured ones are drawn over them."""
    points = []
    for point in explanation.points(number):
        correct = point["label"] == point["predicted"]
        points.append(
            {
                "x": _SIDE / 2 * (1 + 0.97 * point["x"]),
                "y": _SIDE / 2 * (1 - 0.97 * point["y"]),
                "colour": colours.get(point["label"], _GREY),
                "correct": correct,
                "title": f"{point['label']}{'' if correct else ', predicted ' + point['predicted']}: {point['id']}",
            }
        )
    return sorted(points, key=lambda point: point["colour"] != _GREY)


def _weight_tables(explanation: DataSetExplanation) -> list[dict[str, Any]]:
    """Return each VAP head's table: a row a class, a column a vector, and the mean over all videos."""
    tables = []
    for outputs, heading in zip(explanation.models, explanation.headings, strict=True):
        for branch, classes in outputs.timescales_by_class().items():
            mean = outputs.timescale_weights[branch].mean(0).tolist()
            names = list(next(iter(classes.values())))
            rows = [{"label": label, "weights": list(weights.values())} for label, weights in sorted(classes.items())]
            tables.append({"model": heading, "branch": branch, "names": names, "mean": mean, "rows": rows})
    return tables

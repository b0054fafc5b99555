"""Render a timeline as a self-contained HTML page: a coloured strip over time, probabilities below it, a thumbnail of each segment."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless.engines.timeline.segments import Steps, clock
from flowless.engines.timeline.thumbnails import Thumbnails
from flowless.engines.timeline.video_timeline import Segment, Timeline
from flowless.files import printable
from flowless.html_pages import rendered

#: Seconds and segments that a row of the strip has at most, as far as there are rows.
_ROW_SECONDS, _ROW_SEGMENTS, _MAX_ROWS = 600.0, 40, 24
#: Lengths of rows and distances of ticks, in seconds; longer ones are whole hours.
_ROUND = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 180, 300, 600, 900, 1200, 1800, 3600)
_TICKS = 9
#: Classes with a line, points of a line in each row, and segments with a picture.
_LINES, _POINTS, _PICTURES = 8, 400, 400
#: Height of a row's lines, in SVG units; its width is 1000.
_HEIGHT = 100
#: The first colours are Okabe and Ito's, safe for red-green colour blindness; more are made by the golden angle.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a7a00", "#6b53a6")


def render(made: Timeline, pictures: Thumbnails) -> str:
    """Return the page's HTML, which loads nothing from outside and has no script.

    Args:
        made: The timeline.
        pictures: Thumbnails of the video's frames; they are read here.
    """
    spent = {item.label: 0.0 for item in made.detections}
    for item in made.segments:
        spent[item.label] = spent.get(item.label, 0.0) + item.end - item.start
    named = sorted(spent, key=lambda label: -spent[label])
    steps = made.steps
    drawn = [made.labels.index(label) for label in named[:_LINES]] or np.argsort(-steps.shares.max(axis=0))[:3].tolist()
    colours = {label: _colour(number) for number, label in enumerate(dict.fromkeys([*named, *(made.labels[index] for index in drawn)]))}
    most = set(sorted(made.segments, key=lambda item: -item.score)[:_PICTURES])
    return rendered(
        Path(__file__).with_name("timeline_page.html"),
        made=made,
        name=printable(Path(made.video).name),
        duration=clock(made.seconds),
        legend=[{"label": label, "colour": colour, "time": clock(spent.get(label, 0.0))} for label, colour in colours.items()],
        rows=[_row(made, steps, colours, drawn, span) for span in _rows(made)],
        lanes=_lanes(made, colours, named),
        cards=[_card(item, colours, pictures if item in most else None) for item in made.segments],
        end=clock(made.windows[-1].end),
        height=_HEIGHT,
        threshold_y=_HEIGHT * (1 - made.options.threshold),
    )


def _colour(number: int) -> str:
    if number < len(_COLOURS):
        return _COLOURS[number]
    return f"hsl({(number * 137.508) % 360:.0f}, {(65, 45)[number % 2]}%, {(38, 52, 66)[number % 3]}%)"


def _rows(made: Timeline) -> list[tuple[float, float]]:
    """Return the (start, end) of each row: the whole video, or equal parts of a round length."""
    rows = min(_MAX_ROWS, math.ceil(max(made.seconds / _ROW_SECONDS, len(made.segments) / _ROW_SEGMENTS, 1)))
    if rows == 1:
        return [(0.0, made.seconds)]
    length = _round_up(made.seconds / rows)
    return [(number * length, (number + 1) * length) for number in range(math.ceil(made.seconds / length))]


def _round_up(seconds: float) -> float:
    return next((value for value in _ROUND if value >= seconds), 3600 * math.ceil(seconds / 3600))


def _row(made: Timeline, steps: Steps, colours: dict[str, str], drawn: Sequence[int], span: tuple[float, float]) -> dict[str, Any]:
    """Return a row's boxes, lines and ticks; places are in percent of its width."""
    start, end = span
    gaps = _unscored(made)
    return {
        "start": clock(start),
        "boxes": [_box(item, colours, span) for item in made.segments if item.end > start and item.start < end],
        "gaps": [{"left": left, "width": right - left} for left, right in (_place(gap, span) for gap in gaps) if right > left],
        "lines": [{"colour": colours[made.labels[index]], "points": _points(steps, index, span)} for index in drawn],
        "ticks": _ticks(start, min(end, made.seconds), end - start),
        "beyond": max(0.0, 100 - 100 * (made.seconds - start) / (end - start)) if end > start else 0.0,
    }


def _unscored(made: Timeline) -> list[tuple[float, float]]:
    """Return the parts of the video that no window covers: between windows, and after damage."""
    gaps, end = [], 0.0
    for item in made.windows:
        if item.start > end + 1e-9:
            gaps.append((end, item.start))
        end = max(end, item.end)
    return [*gaps, (end, made.seconds)] if end < made.seconds - 1e-9 else gaps


def _place(part: tuple[float, float], span: tuple[float, float]) -> tuple[float, float]:
    """Return where a part begins and ends in a row, in percent."""
    length = max(span[1] - span[0], 1e-9)
    left, right = (100 * (min(max(edge, span[0]), span[1]) - span[0]) / length for edge in part)
    return round(left, 3), round(right, 3)


def _box(item: Segment, colours: dict[str, str], span: tuple[float, float]) -> dict[str, Any]:
    left, right = _place((item.start, item.end), span)
    title = f"{item.label}: {clock(item.start)} to {clock(item.end)}, {100 * item.score:.0f} %"
    return {
        "left": left,
        "width": round(right - left, 3),
        "colour": colours[item.label],
        "title": title,
        "label": item.label,
        "score": item.score,
    }


def _points(steps: Steps, index: int, span: tuple[float, float]) -> str:
    """Return a class's line in a row as SVG points; of more steps than a line has points, the highest of each few is drawn."""
    first = max(int(np.searchsorted(steps.edges, span[0], side="right")) - 1, 0)
    last = min(int(np.searchsorted(steps.edges, span[1])), len(steps.edges) - 1)
    if last <= first:
        return ""
    edges, shares = steps.edges[first : last + 1], steps.shares[first:last, index]
    if len(shares) > _POINTS:
        starts = np.arange(0, len(shares), math.ceil(len(shares) / _POINTS))
        edges, shares = np.append(edges[starts], edges[-1]), np.maximum.reduceat(shares, starts)
    x = 1000 * (np.clip(edges, *span) - span[0]) / (span[1] - span[0])
    return " ".join(_pairs(np.repeat(x, 2)[1:-1], np.repeat(_HEIGHT * (1 - shares), 2)))


def _pairs(x: NDArray[np.float64], y: NDArray[np.float64]) -> Iterable[str]:
    return (f"{one:.1f},{other:.1f}" for one, other in zip(x, y, strict=True))


def _ticks(start: float, end: float, length: float) -> list[dict[str, Any]]:
    """Return a row's ticks at round times: their place in percent and their text; every other one is minor."""
    step = _round_up(length / _TICKS)
    first = math.ceil(start / step - 1e-9)
    times = [number * step for number in range(first, math.floor(end / step + 1e-9) + 1)]
    found = []
    for number, seconds in enumerate(times):
        text = clock(seconds)
        text = text if step < 1 else text.partition(".")[0]
        found.append({"left": round(100 * (seconds - start) / max(length, 1e-9), 3), "text": text, "minor": number % 2 == 1})
    return found


def _lanes(made: Timeline, colours: dict[str, str], named: Sequence[str]) -> list[dict[str, Any]]:
    """Return a lane of detections for each label, over the whole video; those of high scores are drawn last."""
    span, lanes = (0.0, made.seconds), []
    for label in named:
        own = [item for item in reversed(made.detections) if item.label == label]
        if own:
            lanes.append({"label": label, "boxes": [_box(item, colours, span) for item in own]})
    return lanes


def _card(item: Segment, colours: dict[str, str], pictures: Thumbnails | None) -> dict[str, Any]:
    """Return a segment with its picture, taken where its class is the most probable."""
    jpeg = pictures.nearest(item.peak) if pictures is not None else None
    return {
        "label": item.label,
        "colour": colours[item.label],
        "time": f"{clock(item.start)} – {clock(item.end)}",
        "score": f"{100 * item.score:.0f} %",
        "picture": None if jpeg is None else "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii"),
        "at": clock(item.peak),
    }

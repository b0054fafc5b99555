"""What a data set consists of: the formats in which people keep labelled videos.

A format is a function from the place that the user named to a `Listing`; it looks at names only and opens no video.
`FORMATS` is the register: a further format is one more function in it.
"""

from __future__ import annotations

import csv
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowless.errors import FlowlessError
from flowless.files import absolute, printable
from flowless.pipeline.dataset.index import FORMAT as INDEX_FORMAT
from flowless.pipeline.dataset.index import Refused
from flowless.pipeline.video.frame_folder import PICTURE_SUFFIXES

#: Suffixes, in small letters, of the files that a folder's scan takes for videos.
VIDEO_SUFFIXES = frozenset(
    {".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v",
     ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut",
     ".obu", ".ogg", ".ogm", ".ogv", ".ps", ".qt", ".rm", ".rmvb", ".tp", ".trp", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Item:
    """One labelled video, or part of one, before anybody looked at the file."""

    path: Path
    label: str
    start: float | None = None
    """Seconds from the first frame at which the part begins; None is the beginning."""
    end: float | None = None
    """Seconds from the first frame before which the part ends; None is the end."""
    line: int = 0
    """Line of the list that named it; 0 where there is no list."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All that a source names."""

    root: Path
    """Folder that the index's paths are relative to."""
    items: tuple[Item, ...]
    refused: tuple[Refused, ...] = ()
    """Entries that cannot be meant, such as a line without a label."""
    ignored: tuple[Path, ...] = ()
    """Files that are no videos by their suffix, or lie in no class's folder, passed over."""
    empty: tuple[str, ...] = ()
    """Classes in which nothing that can be meant was found: their folders are empty, or some of their lines refused."""


def list_source(source: str | os.PathLike[str], *, format: str) -> Listing:  # noqa: A002
    """List a data set.

    Args:
        source: What the format asks for: a folder, or a file.
        format: A key of `FORMATS`: `folder` for `SOURCE/<class>/**/<video>`, `csv` for a table `path,label[,start,end]`.

    Raises:
        FlowlessError: The format is unknown, or the source is missing, of another kind, or names no video.
    """
    if format not in FORMATS:
        raise FlowlessError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}.")
    place = Path(source)
    if not os.path.exists(place):  # noqa: PTH110
        raise FlowlessError(f"{place}: there is no such file or folder to scan. Check the name.")
    listing = FORMATS[format](place)
    if not listing.items and not listing.refused:
        raise FlowlessError(f"{place}: it names no video. {_EXPECTED[format]}")
    return listing


def folder_per_class(place: Path) -> Listing:
    """List `place/<class>/**/<video>`, sorted; links are followed, hidden files left out, other files counted as ignored.

    A video is a file, or a folder of pictures.
    """
    if not place.is_dir():
        raise FlowlessError(f"{place}: it is not a folder. {_EXPECTED['folder']} For a table of paths and labels use --format csv.")
    items: list[Item] = []
    empty: list[str] = []
    ignored: list[Path] = []
    for folder in sorted(place.iterdir()):
        if folder.name.startswith("."):
            continue
        if not folder.is_dir():
            ignored.append(folder)
            continue
        before = len(items)
        for path in sorted(_videos_below(folder)):
            if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES:
                items.append(Item(path=path, label=normal(folder.name)))
            else:
                ignored.append(path)
        if len(items) == before:
            empty.append(folder.name)
    if not items and ignored:
        raise FlowlessError(f"{place}: it holds {len(ignored)} files, but no folder of a class with videos in it. {_EXPECTED['folder']}")
    return Listing(root=place, items=tuple(items), ignored=tuple(ignored), empty=tuple(empty))


def csv_table(place: Path) -> Listing:
    """List a table with the columns `path,label` and, for parts, `start,end` in seconds; paths are relative to the table."""
    if place.exists() and not place.is_file():
        raise FlowlessError(f"{place}: it is no file. {_EXPECTED['csv']}")
    items: list[Item] = []
    refused: list[Refused] = []
    named: set[str] = set()
    seen: dict[tuple[str, float | None, float | None], tuple[int, str]] = {}
    try:
        with place.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, skipinitialspace=True, strict=True)
            columns = list(rows.fieldnames or ())
            if not {"path", "label"} <= set(columns) <= {"path", "label", "start", "end"} or len(set(columns)) < len(columns):
                raise FlowlessError(f"{place}: its first line names the columns {sorted(map(str, columns))}. {_EXPECTED['csv']}")
            for row in rows:
                made = _item(row, place.parent, rows.line_num)
                if isinstance(made, Item):
                    first, label = seen.setdefault((absolute(made.path), made.start, made.end), (made.line, made.label))
                    if first == made.line:
                        items.append(made)
                        continue
                    other = "" if label == made.label else f" with another label, {label!r}"
                    made = Refused(path=str(row["path"]), reason=f"line {made.line}: listed already in line {first}{other}")
                refused.append(made)
                named |= {normal(label) for label in [str(row.get("label") or "").strip()] if label}
    except OSError as error:
        raise FlowlessError(f"{place}: cannot be read ({error.strerror}). {_EXPECTED['csv']}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FlowlessError(f"{place}: it is not a table in UTF-8 ({error}; is a quote left open?). {_EXPECTED['csv']}") from error
    return Listing(root=place.parent, items=tuple(items), refused=tuple(refused), empty=tuple(sorted(named)))


#: Format -> how to list it. The public data sets' own formats have their place here.
FORMATS: Mapping[str, Callable[[Path], Listing]] = {"folder": folder_per_class, "csv": csv_table}
_EXPECTED = {
    "folder": "A folder source is SOURCE/<class>/<video>, one folder a class.",
    "csv": "A csv source is a UTF-8 table whose first line is path,label or path,label,start,end (start and end in seconds).",
}


def label_order(names: set[str]) -> tuple[str, ...]:
    """Return label names in the order of the class scores: alphabetic, or by number where all are numbers."""
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read label names, in the order of the class scores, from an index, a JSON list, or a text with one name a line.

    Raises:
        FlowlessError: The file is missing or unreadable, has no label, or has one twice.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FlowlessError(f"{source}: the labels cannot be read ({error}). Name an index, or a text with one label a line.") from error
    try:
        document = json.loads(text if text.lstrip().startswith("[") else text.partition("\n")[0])
    except ValueError:
        document = None
    if isinstance(document, dict) and document.get("format") == INDEX_FORMAT:
        document = document.get("labels")
    names = document if isinstance(document, list) else [line.strip() for line in text.split("\n") if line.strip()]
    names = [normal(name) if isinstance(name, str) else name for name in names]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if not names or twice or not all(isinstance(name, str) for name in names):
        problem = f"the labels {twice} appear more than once" if twice else "it has no labels, or labels that are no text"
        raise FlowlessError(f"{source}: {problem}. Name an index, or a text with one label a line.")
    return tuple(names)


def normal(name: str) -> str:
    """Return a label as text in Unicode's composed form: some systems write an accented letter as two characters, others as one."""
    return printable(unicodedata.normalize("NFC", name))


def _videos_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, and the folders of pictures in the place of their pictures."""
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # A link to a folder above itself would go round for ever.
        visited.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if not name.startswith(".") and os.path.realpath(Path(parent, name)) not in visited]
        paths = [Path(parent, name) for name in files if not name.startswith(".")]
        pictures = {path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES}
        # Pictures beside videos, or right below the class, are previews and the like.
        if pictures and Path(parent) != folder and not any(path.suffix.lower() in VIDEO_SUFFIXES for path in paths):
            yield Path(parent)
            paths = [path for path in paths if path not in pictures]
        yield from paths


def _there(path: Path) -> Path:
    """Return a path as the file system spells it: a table may have its accented letters in another of Unicode's forms."""
    if os.path.exists(path):  # noqa: PTH110  pathlib raises where a name is too long
        return path
    for form in ("NFC", "NFD"):
        other = Path(unicodedata.normalize(form, str(path)))
        if os.path.exists(other):  # noqa: PTH110
            return other
    return path


def _item(row: Mapping[str | None, object], root: Path, line: int) -> Item | Refused:
    name, label = str(row.get("path") or "").strip(), str(row.get("label") or "").strip()
    problems = [f"its {what} holds a NUL" for what, value in (("path", name), ("label", label)) if "\0" in value]
    problems += [f"it has no {what}" for what, value in (("path", name), ("label", label)) if not value]
    if None in row:
        problems.append("it has more values than columns (a comma in a value needs quotes around it)")
    times: dict[str, float | None] = {}
    for column in ("start", "end"):
        text = str(row.get(column) or "").strip()
        try:
            times[column] = float(text) if text else None
        except ValueError:
            times[column] = math.nan
        value = times[column]
        if value is not None and not 0 <= value < math.inf:
            problems.append(f"{column} is {text!r}; it must be seconds from 0 on, or nothing")
    start, end = times["start"], times["end"]
    if not problems and end is not None and end <= (start or 0.0):
        problems.append(f"end is {end:g} s, which is not after start, {start or 0.0:g} s")
    if problems:
        return Refused(path=name.replace("\0", "\\0") or f"(line {line})", reason=f"line {line}: " + "; ".join(problems))
    return Item(path=_there(root / name), label=normal(label), start=start, end=end, line=line)

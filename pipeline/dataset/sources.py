"""Source formats of data sets: lists the labelled videos of a folder or a table.

A format is a function from a path to a `Listing`; it reads names only and opens no video. `FORMATS` registers the formats.
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

#: Lower-case suffixes of video files.
VIDEO_SUFFIXES = frozenset(
    {".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v",
     ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut",
     ".obu", ".ogg", ".ogm", ".ogv", ".ps", ".qt", ".rm", ".rmvb", ".tp", ".trp", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Item:
    """A labelled video, or a part of one, that a source lists."""

    path: Path
    label: str
    start: float | None = None
    """Start of the part in seconds from the first frame; None: the beginning."""
    end: float | None = None
    """End of the part (exclusive) in seconds from the first frame; None: the end."""
    line: int = 0
    """Line of the table; 0 where there is no table."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All entries of a source."""

    root: Path
    """Folder to which the index's paths are relative."""
    items: tuple[Item, ...]
    refused: tuple[Refused, ...] = ()
    """Invalid entries, such as a line without a label."""
    ignored: tuple[Path, ...] = ()
    """Skipped files: their suffix is not a video's, or they are not in the folder of a class."""
    empty: tuple[str, ...] = ()
    """Classes that may have no videos: their folders are empty, or lines of theirs were refused."""


def list_source(source: str | os.PathLike[str], *, format: str) -> Listing:  # noqa: A002
    """List a data set.

    Args:
        source: A folder or a file, depending on the format.
        format: A key of `FORMATS`: `folder` for `SOURCE/<class>/**/<video>`, `csv` for a table `path,label[,start,end]`.

    Raises:
        FlowlessError: The format is unknown, or the source is missing, does not match the format, or lists no video.
    """
    if format not in FORMATS:
        raise FlowlessError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}.")
    path = Path(source)
    if not os.path.exists(path):  # noqa: PTH110
        raise FlowlessError(f"{path}: there is no such file or folder to scan. Check the name.")
    listing = FORMATS[format](path)
    if not listing.items and not listing.refused:
        raise FlowlessError(f"{path}: it lists no video. {_EXPECTED[format]}")
    return listing


def folder_per_class(root: Path) -> Listing:
    """List `root/<class>/**/<video>`, sorted; links are followed, hidden files omitted, and other files listed as ignored.

    A video is a file, or a folder of pictures.
    """
    if not root.is_dir():
        raise FlowlessError(f"{root}: it is not a folder. {_EXPECTED['folder']} For a table of paths and labels use --format csv.")
    items: list[Item] = []
    empty: list[str] = []
    ignored: list[Path] = []
    for folder in sorted(root.iterdir()):
        if folder.name.startswith("."):
            continue
        if not folder.is_dir():
            ignored.append(folder)
            continue
        before = len(items)
        for path in sorted(_videos_below(folder)):
            if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES:
                items.append(Item(path=path, label=normalise_label(folder.name)))
            else:
                ignored.append(path)
        if len(items) == before:
            empty.append(folder.name)
    if not items and ignored:
        raise FlowlessError(f"{root}: it holds {len(ignored)} files, but no folder of a class with videos in it. {_EXPECTED['folder']}")
    return Listing(root=root, items=tuple(items), ignored=tuple(ignored), empty=tuple(empty))


def csv_table(table: Path) -> Listing:
    """List a table with the columns `path,label` and, for parts, `start,end` in seconds; paths are relative to the table."""
    if table.exists() and not table.is_file():
        raise FlowlessError(f"{table}: it is not a regular file. {_EXPECTED['csv']}")
    items: list[Item] = []
    refused: list[Refused] = []
    named: set[str] = set()
    seen: dict[tuple[str, float | None, float | None], tuple[int, str]] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, skipinitialspace=True, strict=True)
            columns = list(rows.fieldnames or ())
            if not {"path", "label"} <= set(columns) <= {"path", "label", "start", "end"} or len(set(columns)) < len(columns):
                raise FlowlessError(f"{table}: its first line has the columns {sorted(map(str, columns))}. {_EXPECTED['csv']}")
            for row in rows:
                made = _parse_row(row, table.parent, rows.line_num)
                if isinstance(made, Item):
                    first, label = seen.setdefault((absolute(made.path), made.start, made.end), (made.line, made.label))
                    if first == made.line:
                        items.append(made)
                        continue
                    other = "" if label == made.label else f" with another label, {label!r}"
                    made = Refused(path=str(row["path"]), reason=f"line {made.line}: listed already in line {first}{other}")
                refused.append(made)
                named |= {normalise_label(label) for label in [str(row.get("label") or "").strip()] if label}
    except OSError as error:
        raise FlowlessError(f"{table}: cannot be read ({error.strerror}). {_EXPECTED['csv']}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FlowlessError(f"{table}: it is not a table in UTF-8 ({error}; is a quote left open?). {_EXPECTED['csv']}") from error
    return Listing(root=table.parent, items=tuple(items), refused=tuple(refused), empty=tuple(sorted(named)))


#: Format -> function that lists it.
FORMATS: Mapping[str, Callable[[Path], Listing]] = {"folder": folder_per_class, "csv": csv_table}
_EXPECTED = {
    "folder": "A folder source is SOURCE/<class>/<video>, one folder per class.",
    "csv": "A csv source is a UTF-8 table whose first line is path,label or path,label,start,end (start and end in seconds).",
}


_LABELS_FROM = "Name an index, or a text file with one label per line."


def label_order(names: set[str]) -> tuple[str, ...]:
    """Sort label names into the order of the class scores: alphabetically, or numerically where all are numbers."""
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read label names, in the order of the class scores, from an index, a JSON list, or a text file with one name per line.

    Raises:
        FlowlessError: The file is missing or unreadable, has no labels, or has a label twice.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FlowlessError(f"{source}: the labels cannot be read ({error}). {_LABELS_FROM}") from error
    try:
        document = json.loads(text if text.lstrip().startswith("[") else text.partition("\n")[0])
    except ValueError:
        document = None
    if isinstance(document, dict) and document.get("format") == INDEX_FORMAT:
        document = document.get("labels")
    names = document if isinstance(document, list) else [line.strip() for line in text.split("\n") if line.strip()]
    names = [normalise_label(name) if isinstance(name, str) else name for name in names]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if not names or twice or not all(isinstance(name, str) for name in names):
        problem = f"the labels {twice} appear more than once" if twice else "it has no labels, or labels that are not strings"
        raise FlowlessError(f"{source}: {problem}. {_LABELS_FROM}")
    return tuple(names)


def normalise_label(name: str) -> str:
    """Return a label in Unicode's composed form (NFC), since some systems store accented letters decomposed (NFD)."""
    return printable(unicodedata.normalize("NFC", name))


def _videos_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder; a folder of pictures is yielded instead of its pictures."""
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # A link to a parent folder would cause an infinite loop.
        visited.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if not name.startswith(".") and os.path.realpath(Path(parent, name)) not in visited]
        paths = [Path(parent, name) for name in files if not name.startswith(".")]
        pictures = {path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES}
        # Pictures beside videos, or directly in the class's folder, are previews and the like.
        if pictures and Path(parent) != folder and not any(path.suffix.lower() in VIDEO_SUFFIXES for path in paths):
            yield Path(parent)
            paths = [path for path in paths if path not in pictures]
        yield from paths


def _existing_form(path: Path) -> Path:
    """Return the Unicode form of a path that exists: a table may store accented letters in another form than the file system."""
    if os.path.exists(path):  # noqa: PTH110  pathlib raises where a name is too long
        return path
    for form in ("NFC", "NFD"):
        other = Path(unicodedata.normalize(form, str(path)))
        if os.path.exists(other):  # noqa: PTH110
            return other
    return path


def _parse_row(row: Mapping[str | None, object], root: Path, line: int) -> Item | Refused:
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
            problems.append(f"{column} is {text!r}; it must be seconds, at least 0, or empty")
    start, end = times["start"], times["end"]
    if not problems and end is not None and end <= (start or 0.0):
        problems.append(f"end is {end:g} s, which is not after start, {start or 0.0:g} s")
    if problems:
        return Refused(path=name.replace("\0", "\\0") or f"(line {line})", reason=f"line {line}: " + "; ".join(problems))
    return Item(path=_existing_form(root / name), label=normalise_label(label), start=start, end=end, line=line)

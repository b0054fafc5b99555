"""The command line of `flowless timeline`."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from flowless.console import emit, log, progress
from flowless.engines.targets import Target
from flowless.engines.timeline.options import TimelineOptions
from flowless.engines.timeline.segments import clock
from flowless.errors import FlowlessError
from flowless.files import absolute, printable, refuse_unwritable, whole_folder, write_json

if TYPE_CHECKING:
    from flowless.engines.engine import Engine
    from flowless.engines.timeline.thumbnails import Thumbnails
    from flowless.engines.timeline.video_timeline import Progress, Segment, Timeline

#: Files of a video's folder.
DOCUMENT, PAGE = "timeline.json", "page.html"
#: Segments that the table lists; --json and the page have all.
_LISTED = 40


@dataclass(frozen=True, kw_only=True)
class TimelineArgs:
    """Find what happens when in untrimmed videos: segments with start, end, label and score.

    A window slides over the video, and each is scored as `flowless predict` scores a video of that part alone. A moment has the mean
    probability of the windows that cover it. Every frame is decoded once, and an hour takes no more memory than a minute. A video that
    cannot be read is reported with the reason, the others go on, and the exit code is 1; of a damaged one, what comes before the damage is
    kept.
    """

    bundle: tyro.conf.Positional[Path]
    """The bundle's folder, which flowless export and build wrote."""
    videos: tyro.conf.Positional[tuple[Path, ...]]
    """Video files, or folders of numbered pictures."""
    options: tyro.conf.OmitArgPrefixes[TimelineOptions] = field(default_factory=TimelineOptions)
    """Windows and segments."""
    out: Path | None = None
    """Folder to write OUT/VIDEO/timeline.json and OUT/VIDEO/page.html into. The page needs jinja2 (pip install 'flowless[train]')."""
    scores: bool = False
    """Add the probabilities of every window to the JSON."""
    target: Target | None = None
    """Library that runs the engine; by default the fastest that this machine can run."""
    precision: str | None = None
    """Precision of the engine, such as fp32; by default what the bundle has."""
    hint: Literal["f32", "bf16", "f16"] | None = None
    """openvino: compute an fp32 engine in this precision."""
    threads: int | None = None
    """CPU threads of the engine; by default the library chooses."""
    json: bool = False
    """Print one JSON document instead of a table."""


def main(arguments: Sequence[str]) -> int:
    """Run `flowless timeline`."""
    args = tyro.cli(TimelineArgs, args=list(arguments), prog="flowless timeline", description=inspect.getdoc(TimelineArgs))
    from flowless.engines.loading import load
    from flowless.engines.timeline.video_timeline import label_indices

    if not args.videos:
        raise FlowlessError(f"{args.bundle}: no video was named. Use: flowless timeline BUNDLE VIDEO...")
    folders = _folders(args.out, args.videos)
    paged = args.out is not None and importlib.util.find_spec("jinja2") is not None
    if args.out is not None and not paged:
        log.print(
            f"flowless: jinja2 is not installed, so {DOCUMENT} is written without {PAGE}. Add it with: pip install 'flowless[train]'",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    engine = load(args.bundle, args.target, args.precision, threads=args.threads, hint=args.hint)
    label_indices(engine, args.options.background)  # once, before the first video
    log.print(engine.why, markup=False, soft_wrap=True)
    documents: list[dict[str, Any]] = []
    table = Table("video", "from", "to", "action", "score")
    for video, folder in zip(args.videos, folders, strict=True):
        try:
            made = _one(engine, video, folder, args, paged=paged)
        except FlowlessError as error:
            documents.append({"video": str(video), "error": str(error)})
            table.add_row(escape(printable(video)), "", "", "[red]cannot be read[/red]", "")
            log.print(f"flowless: {error}", style="red", markup=False, soft_wrap=True)
            continue
        for warning in made.warnings:
            log.print(f"flowless: {printable(video)}: {warning}.", style="yellow", markup=False, soft_wrap=True)
        if made.error:
            end = clock(made.windows[-1].end)
            log.print(f"flowless: {made.error} The timeline ends at {end}.", style="red", markup=False, soft_wrap=True)
        documents.append(made.to_dict(scores=args.scores))
        _add_rows(table, made)
    written = args.out is not None and any(folder is not None and folder.exists() for folder in folders)
    emit(documents, table, *([escape(f"written: {args.out}")] if written else []), as_json=args.json)
    return 1 if any("error" in document for document in documents) else 0


def _folders(out: Path | None, videos: Sequence[Path]) -> list[Path | None]:
    """Return each video's folder within `out`: its file's name, with a number where two have the same.

    Raises:
        FlowlessError: `out` cannot be written, or a folder is there already that this command has not written.
    """
    if out is None:
        return [None] * len(videos)
    refuse_unwritable(out / DOCUMENT)
    found: list[Path | None] = []
    for video in videos:
        name = Path(absolute(video)).name or "video"
        numbered = (out / (name if number == 1 else f"{name}-{number}") for number in range(1, len(videos) + 1))
        folder = next(one for one in numbered if one not in found)
        if folder.is_symlink() or (folder.exists() and not (folder / DOCUMENT).is_file()):
            raise FlowlessError(f"{folder}: it is there already and is no timeline. Name another folder with --out, or remove it.")
        if others := sorted({path.name for path in folder.glob("*")} - {DOCUMENT, PAGE}):
            # The folder is replaced as a whole.
            raise FlowlessError(f"{folder}: it has {printable(others[0])}, which is not this command's. Move it, or name another --out.")
        found.append(folder)
    return found


def _one(engine: Engine, video: Path, folder: Path | None, args: TimelineArgs, *, paged: bool) -> Timeline:
    """Return a video's timeline; write its folder, whole or not at all."""
    from flowless.engines.timeline.thumbnails import Thumbnails
    from flowless.engines.timeline.video_timeline import timeline

    with ExitStack() as stack:
        pictures = stack.enter_context(Thumbnails(args.options.stride)) if paged else None
        with _bar(printable(video.name)) as report:
            made = timeline(engine, video, args.options, progress=report, see=pictures.add if pictures else None)
        if folder is not None:
            _write(folder, made, pictures, scores=args.scores)
    return made


def _write(folder: Path, made: Timeline, pictures: Thumbnails | None, *, scores: bool) -> None:
    with whole_folder(folder) as draft:
        write_json(draft / DOCUMENT, made.to_dict(scores=scores))
        if pictures is not None:
            from flowless.engines.timeline.timeline_page import render
            from flowless.html_pages import write_text

            write_text(draft / PAGE, render(made, pictures))


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """Yield a function that shows the windows that are done."""
    with progress() as bar:
        task = bar.add_task(escape(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _add_rows(table: Table, made: Timeline) -> None:
    """Add a video's segments to the table; with detections, those."""
    rows: tuple[Segment, ...] = made.detections if made.options.detections else made.segments
    name = escape(printable(made.video))
    for number, item in enumerate(rows[:_LISTED]):
        table.add_row(name if number == 0 else "", clock(item.start), clock(item.end), escape(item.label), f"{item.score:.3f}")
    if not rows:
        table.add_row(name, "", "", f"nothing at or above {made.options.threshold:g}", "")
    if len(rows) > _LISTED:
        table.add_row("", "", "", f"and {len(rows) - _LISTED} more: --json, or --out", "")

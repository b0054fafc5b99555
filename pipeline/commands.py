"""The pipeline's subcommands: `flowless scan` and `flowless shapes`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from flowless import console
from flowless.errors import FlowlessError
from flowless.files import printable
from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord
from flowless.pipeline.dataset.refused_table import refused_table
from flowless.pipeline.dataset.scan import ScanOptions, ScanReport, run_scan
from flowless.pipeline.synthetic.moving_shapes import CLASSES, ShapesOptions, generate


@dataclass(frozen=True, kw_only=True)
class ScanArgs:
    """Index a data set: read every video once and write its properties, one line per video.

    Unusable files do not stop the scan; the index and the printed table list each with the reason. After Ctrl-C, the same
    command resumes where the scan stopped.
    """

    source: tyro.conf.Positional[Path]
    """What to scan. Format folder: SOURCE/<class>/<video>, at any depth below the class; files with other
    suffixes than videos' are skipped and counted. Format csv: a table path,label or path,label,start,end with start and end
    in seconds from the first frame, paths relative to the table. A video is a file, or a folder of numbered pictures
    (00001.jpg, 00002.jpg, as in Jester and Something-Something V1)."""
    format: Literal["folder", "csv"] = "folder"
    """Format of the source."""
    out: Path = Path("index.jsonl")
    """The index to write."""
    labels: Path | None = None
    """An index, or a text file with one label per line, whose labels and order this index uses: pass the training set's
    index when scanning the validation set. A video with any other label is refused."""
    workers: int | None = None
    """Processes that read files; by default one per processor core."""
    decode: bool = True
    """Decode every frame, to count the frames that decode and to find damage. --no-decode counts packets, many times faster."""
    rate: float | None = None
    """Frames per second of videos that are folders of pictures: 12 in Jester and Something-Something. Needed for start and end."""
    allow_empty: bool = False
    """Exit with code 0 even if a class has no usable video."""
    json: bool = False
    """Print one JSON document instead of tables."""


def scan(args: Sequence[str]) -> int:
    """Run `flowless scan`."""
    parsed = tyro.cli(ScanArgs, args=args, prog="flowless scan")
    options = ScanOptions(format=parsed.format, workers=parsed.workers, labels=parsed.labels, decode=parsed.decode, rate=parsed.rate)
    try:
        report = run_scan(parsed.source, out=parsed.out, options=options)
    except KeyboardInterrupt:
        console.log.print("flowless: the results so far are kept. Run the same command again to resume.", style="yellow")
        raise
    console.emit(_scan_document(report, parsed.out), *_scan_tables(report, parsed.out), as_json=parsed.json)
    if not report.index.videos:
        raise FlowlessError(f"{parsed.source}: it has no usable video; {parsed.out} lists the reasons.")
    if report.empty and not parsed.allow_empty:
        names = ", ".join(map(repr, report.empty))
        raise FlowlessError(
            f"{parsed.source}: no usable video of {names}. {parsed.out} is written without; if that is intended, pass --allow-empty."
        )
    return 0


@dataclass(frozen=True, kw_only=True)
class ShapesArgs:
    """Generate Moving Shapes: labelled videos of twelve actions in six pairs, each the time-reversal of its twin.

    A model that ignores the order of frames cannot exceed 50 % accuracy on them. Writes OUT/train/CLASS/*.mp4, OUT/val/CLASS/*.mp4,
    and an index of each split, OUT/train.index.jsonl and OUT/val.index.jsonl.
    """

    out: tyro.conf.Positional[Path]
    """Folder to write. A folder of Moving Shapes is replaced; any other non-empty folder is refused."""
    options: tyro.conf.OmitArgPrefixes[ShapesOptions] = field(default_factory=ShapesOptions)
    """What to generate."""
    workers: int | None = None
    """Processes that draw and encode; by default one per processor core."""
    json: bool = False
    """Print one JSON document instead of a table."""


def shapes(args: Sequence[str]) -> None:
    """Run `flowless shapes`."""
    parsed = tyro.cli(ShapesArgs, args=args, prog="flowless shapes")
    folder = generate(parsed.out, options=parsed.options, workers=parsed.workers)
    videos = {"train": parsed.options.train_videos, "val": parsed.options.val_videos}
    splits = {split: {"videos": count, "index": str(folder / f"{split}.index.jsonl")} for split, count in videos.items()}
    table = Table("split", "videos", "index", title=f"Moving Shapes, {len(CLASSES)} actions")
    for split, found in splits.items():
        table.add_row(split, str(found["videos"]), escape(str(found["index"])))
    document = {"folder": str(folder), "labels": list(CLASSES), "splits": splits}
    console.emit(document, table, as_json=parsed.json)


def _scan_document(report: ScanReport, out: Path) -> dict[str, Any]:
    index = report.index
    return {
        "index": str(out),
        "videos": len(index.videos),
        "frames": sum(video.frames for video in index.videos),
        "labels": list(index.labels),
        "codecs": dict(Counter(video.info.codec for video in index.videos).most_common()),
        "refused": [{"path": item.path, "reason": item.reason} for item in index.refused],
        "ignored": len(report.ignored),
        "empty": list(report.empty),
        "variable_rate": sum(video.info.variable_rate for video in index.videos),
        "packets_missing": [{"path": video.path, "after": list(video.info.missing)} for video in _with_gaps(index)],
        "resumed": report.resumed,
        "seconds": round(report.seconds, 3),
    }


def _with_gaps(index: DatasetIndex) -> list[VideoRecord]:
    """Return the videos with missing packets or pictures, each file once."""
    return list({video.path: video for video in index.videos if video.info.missing}.values())


def _scan_tables(report: ScanReport, out: Path) -> list[Table]:
    document = _scan_document(report, out)
    summary = Table(show_header=False)
    summary.add_row("index", escape(str(out)))
    for name in ("videos", "frames", "resumed", "seconds"):
        summary.add_row(name, str(document[name]))
    summary.add_row("labels", str(len(report.index.labels)))
    codecs = Counter(video.info.codec for video in report.index.videos)
    summary.add_row("codecs", ", ".join(f"{codec} {count}" for codec, count in codecs.most_common()))
    summary.add_row("refused", str(len(report.index.refused)))
    gaps = [f"{video.path}: {video.info.gaps}" for video in _with_gaps(report.index)]
    for name, shown in (("without a usable video", report.empty), ("gaps", gaps), ("ignored, not a video of a class", report.ignored)):
        if shown:
            more = f"\nand {len(shown) - 8} more" if len(shown) > 8 else ""
            summary.add_row(name, escape("\n".join(printable(line) for line in shown[:8])) + more)
    return [summary, *refused_table(report.index.refused, title="Refused")]

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
from flowless.pipeline.dataset.scan import ScanOptions, ScanReport, run_scan
from flowless.pipeline.dataset.tables import refused_table
from flowless.pipeline.synthetic.moving_shapes import CLASSES, ShapesOptions, generate


@dataclass(frozen=True, kw_only=True)
class ScanArgs:
    """Index a data set: look at every video once and write what was found, one line a video.

    Every refused file is listed with its reason in the index and in the table, and never stops the scan. After Ctrl-C
    the next scan goes on where this one stopped.
    """

    source: tyro.conf.Positional[Path]
    """What to scan. Format folder: SOURCE/<class>/<video>, at any depth below the class; files that are no videos by
    their suffix are passed over and counted. Format csv: a table path,label or path,label,start,end with start and end
    in seconds from the first frame, paths relative to the table. A video is a file, or a folder of numbered pictures
    (00001.jpg, 00002.jpg, as in Jester and Something-Something V1)."""
    format: Literal["folder", "csv"] = "folder"
    """How the source names its videos."""
    out: Path = Path("index.jsonl")
    """The index to write."""
    labels: Path | None = None
    """An index, or a text with one label a line, whose labels and order this index takes: give the training set's index
    when scanning the validation set. A video with any other label is refused."""
    workers: int | None = None
    """Processes that look at files; by default one a processor core."""
    decode: bool = True
    """Decode every frame: counts what truly decodes, and finds damage. --no-decode trusts the packets, many times faster."""
    rate: float | None = None
    """Pictures a second, where videos are folders of pictures: 12 in Jester and Something-Something. Needed for start and end."""
    allow_empty: bool = False
    """End with exit code 0 although a class has not one usable video."""
    json: bool = False
    """Print one JSON document instead of tables."""


def scan(words: Sequence[str]) -> int:
    """Run `flowless scan`."""
    args = tyro.cli(ScanArgs, args=words, prog="flowless scan")
    options = ScanOptions(format=args.format, workers=args.workers, labels=args.labels, decode=args.decode, rate=args.rate)
    try:
        report = run_scan(args.source, out=args.out, options=options)
    except KeyboardInterrupt:
        console.log.print("flowless: what was looked at is kept. Go on with the same command.", style="yellow")
        raise
    console.emit(_scan_document(report, args.out), *_scan_tables(report, args.out), as_json=args.json)
    if not report.index.videos:
        raise FlowlessError(f"{args.source}: no video of it can be used; {args.out} lists the reasons.")
    if report.empty and not args.allow_empty:
        names = ", ".join(map(repr, report.empty))
        raise FlowlessError(
            f"{args.source}: not one usable video of {names}. {args.out} is written without; if that is meant, say --allow-empty."
        )
    return 0


@dataclass(frozen=True, kw_only=True)
class ShapesArgs:
    """Generate Moving Shapes: labelled videos of twelve actions in six pairs, each the time-reversal of its twin.

    No model that ignores the order of frames can pass 50 % on them. Writes OUT/train/CLASS/*.mp4, OUT/val/CLASS/*.mp4,
    and an index of each split, OUT/train.index.jsonl and OUT/val.index.jsonl.
    """

    out: tyro.conf.Positional[Path]
    """Folder to write. One that holds Moving Shapes is replaced; any other is left alone."""
    options: tyro.conf.OmitArgPrefixes[ShapesOptions] = field(default_factory=ShapesOptions)
    """What to generate."""
    workers: int | None = None
    """Processes that draw and encode; by default one a processor core."""
    json: bool = False
    """Print one JSON document instead of a table."""


def shapes(words: Sequence[str]) -> None:
    """Run `flowless shapes`."""
    chosen = tyro.cli(ShapesArgs, args=words, prog="flowless shapes")
    folder = generate(chosen.out, options=chosen.options, workers=chosen.workers)
    videos = {"train": chosen.options.train_videos, "val": chosen.options.val_videos}
    splits = {split: {"videos": count, "index": str(folder / f"{split}.index.jsonl")} for split, count in videos.items()}
    table = Table("split", "videos", "index", title=f"Moving Shapes, {len(CLASSES)} actions")
    for split, found in splits.items():
        table.add_row(split, str(found["videos"]), escape(str(found["index"])))
    document = {"folder": str(folder), "labels": list(CLASSES), "splits": splits}
    console.emit(document, table, as_json=chosen.json)


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
    """Return the videos of which something is missing, each file once."""
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
    for name, shown in (("without a usable video", report.empty), ("gaps", gaps), ("ignored, no videos of a class", report.ignored)):
        if shown:
            more = f"\nand {len(shown) - 8} more" if len(shown) > 8 else ""
            summary.add_row(name, escape("\n".join(printable(line) for line in shown[:8])) + more)
    return [summary, *refused_table(report.index.refused, title="Refused")]

"""Scans a data set into an index: reads every file once, in parallel; unusable files do not stop the scan."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.files import absolute, refuse_unwritable
from flowless.machine import usable_cores
from flowless.pipeline.dataset.index import DatasetIndex, Refused, VideoRecord, is_index
from flowless.pipeline.dataset.scan_jobs import Inspection, Job, run_jobs
from flowless.pipeline.dataset.scan_journal import Journal
from flowless.pipeline.dataset.sources import Item, Listing, label_order, list_source, read_labels


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """The result of a scan: the index, and statistics."""

    index: DatasetIndex
    ignored: tuple[str, ...]
    """Files that were skipped because their suffix is not a video's."""
    resumed: int
    """Number of files whose results were taken from an interrupted scan."""
    seconds: float
    """Wall-clock time."""
    empty: tuple[str, ...] = ()
    """Classes of the source without a usable video."""


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """Options of a scan."""

    format: str = "folder"
    """`folder` or `csv`; see `sources.list_source`."""
    workers: int | None = None
    """Processes that read files; None: one per processor core; 1: this process."""
    labels: str | os.PathLike[str] | None = None
    """An index or a list of names that defines this index's labels and their order (for a validation set: the training set's index); None:
    the source's labels in alphabetic order."""
    decode: bool = True
    """Decode every frame, to count the frames that decode and to find damage; otherwise count packets, many times faster."""
    rate: float | None = None
    """Frames per second of videos that are folders of numbered pictures; needed where a table gives parts in seconds."""


def scan(
    source: str | os.PathLike[str],
    *,
    format: str = "folder",  # noqa: A002
    out: str | os.PathLike[str],
    workers: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    decode: bool = True,
    rate: float | None = None,
) -> DatasetIndex:
    """Index a data set and write the index to `out`.

    Args:
        source: A folder with one folder per class, or a table of videos; see `sources.list_source`.
        format: `folder` or `csv`.
        out: The index to write; it appears whole or not at all.
        workers: Processes; None is one per processor core.
        labels: An index or a list of names that gives the labels and their order; a validation set takes its training set's index.
        decode: Decode every frame to find damage; otherwise count packets, many times faster.
        rate: Frames per second of videos that are folders of numbered pictures.

    Returns:
        The index. Videos that cannot be used are listed in it with the reason; `run_scan` returns a report besides.

    Raises:
        FlowlessError: The source, the labels or the output cannot be used.
    """
    options = ScanOptions(format=format, workers=workers, labels=labels, decode=decode, rate=rate)
    return run_scan(source, out=out, options=options).index


def run_scan(source: str | os.PathLike[str], *, out: str | os.PathLike[str], options: ScanOptions | None = None) -> ScanReport:
    """Scan every video of a source and write the index.

    Results are appended to `<out>.journal` as they arrive. An interrupted scan leaves the journal and no index; the next scan
    reuses the results of files whose size and modification time are unchanged. A finished scan removes the journal.

    Args:
        source: A folder or a table; see `sources.list_source`.
        out: The index to write, atomically.
        options: Options of the scan.

    Raises:
        FlowlessError: The source, the labels or the output cannot be used. Unusable videos raise no error: the index lists them
            with the reason.
    """
    options = options or ScanOptions()
    workers, labels = options.workers, options.labels
    began = time.perf_counter()
    if workers is not None and workers < 1:
        raise FlowlessError(f"workers is {workers}; it must be at least 1.")
    if options.rate is not None and not 0 < options.rate < math.inf:
        raise FlowlessError(f"rate is {options.rate}; it must be frames per second, above 0.")
    target = Path(out)
    refuse_unwritable(target)
    if target.is_file() and target.stat().st_size and not is_index(target):
        raise FlowlessError(f"{target}: exists and is not an index, so it is not replaced. Name another --out.")
    listing = list_source(source, format=options.format)
    names = read_labels(labels) if labels is not None else label_order({item.label for item in listing.items})
    known, refused = _split_by_label(listing, names, labels)
    jobs = _jobs(known, options)
    with Journal.open(target.with_name(target.name + ".journal")) as journal:
        found = {job: journal.finding(job) for job in jobs}
        pending = [job for job, finding in found.items() if finding is None]
        resumed = len(jobs) - len(pending)
        with progress() as bar:
            task = bar.add_task("scanning", total=len(jobs), completed=resumed)
            for job, finding in run_jobs(pending, workers=workers or usable_cores()):
                found[job] = finding
                journal.note(job, finding)
                bar.advance(task)
        index = _index(listing, known, names, {job.path: finding for job, finding in found.items() if finding}, refused)
        index = replace(index, source=target)
        index.save(target)
        journal.remove()
    return ScanReport(
        index=index,
        ignored=tuple(_name(listing.root, path) for path in listing.ignored),
        resumed=resumed,
        seconds=time.perf_counter() - began,
        empty=_empty_classes(listing, index),
    )


def _empty_classes(listing: Listing, index: DatasetIndex) -> tuple[str, ...]:
    usable = {index.labels[video.label] for video in index.videos}
    named = {item.label for item in listing.items} | set(listing.empty)
    return tuple(sorted(named - usable))


def _split_by_label(listing: Listing, names: Sequence[str], labels: str | os.PathLike[str] | None) -> tuple[list[Item], list[Refused]]:
    known, refused = [], list(listing.refused)
    allowed = set(names)
    for item in listing.items:
        if item.label in allowed:
            known.append(item)
            continue
        where = f"line {item.line}: " if item.line else ""
        reason = f"{where}its label {item.label!r} is not among the {len(names)} labels of {labels}"
        refused.append(Refused(path=_name(listing.root, item.path), reason=reason))
    return known, refused


def _jobs(items: Sequence[Item], options: ScanOptions) -> list[Job]:
    """Return one job per file, for all of its parts."""
    parts: dict[Path, list[tuple[float | None, float | None]]] = {}
    for item in items:
        parts.setdefault(item.path, []).append((item.start, item.end))
    return [Job(path=str(path), parts=tuple(ranges), decode=options.decode, rate=options.rate) for path, ranges in parts.items()]


def _index(
    listing: Listing, items: Sequence[Item], names: Sequence[str], found: dict[str, Inspection], refused: Sequence[Refused]
) -> DatasetIndex:
    label_index = {name: position for position, name in enumerate(names)}
    videos: list[VideoRecord] = []
    bad = list(refused)
    parts_seen: dict[Path, int] = {}
    labelled: dict[tuple[str, int, int], Item] = {}
    for item in items:
        finding, name = found[str(item.path)], _name(listing.root, item.path)
        part = parts_seen.get(item.path, 0)
        parts_seen[item.path] = part + 1
        where = f"line {item.line}: " if item.line else ""
        if finding.reason:
            bad.append(Refused(path=name, reason=where + finding.reason))
            continue
        assert finding.info is not None  # set where there is no reason
        first, frames = finding.parts[part]
        if frames < 1:
            reason = f"it has no frame {_describe_range(item)}; the video lasts {finding.info.seconds:.2f} s"
            bad.append(Refused(path=name, reason=where + reason))
            continue
        other = labelled.setdefault((os.path.realpath(item.path), first, frames), item)
        if other.label != item.label:
            bad.append(Refused(path=name, reason=where + _contradiction(other, _name(listing.root, other.path))))
            continue
        videos.append(
            VideoRecord(
                id=name if item.start is None and item.end is None else f"{name}#{_seconds(item.start or 0)}-{_seconds(item.end)}",
                path=name,
                label=label_index[item.label],
                frames=frames,
                first_frame=first,
                info=finding.info,
                stamp=finding.stamp,
            )
        )
    return DatasetIndex(root=listing.root.absolute(), labels=tuple(names), videos=tuple(videos), refused=tuple(bad))


def _contradiction(other: Item, name: str) -> str:
    """Return the reason to refuse an entry whose frames another entry has with another label (under any path, link or time range)."""
    where = f" of line {other.line}" if other.line else ""
    same = "it is the same file" if other.start is None and other.end is None else "it has the same frames"
    return f"{same} as {name}{where}, which has another label, {other.label!r}"


def _seconds(value: float | None) -> str:
    return "" if value is None else repr(float(value)).removesuffix(".0")


def _name(root: Path, path: Path) -> str:
    """Return the path, relative to the root if it lies below it (without resolving links), else absolute."""
    full, base = Path(absolute(path)), Path(absolute(root))
    return full.relative_to(base).as_posix() if full.is_relative_to(base) else str(full)


def _describe_range(item: Item) -> str:
    return f"from {item.start or 0:g} s" + ("" if item.end is None else f" to {item.end:g} s")

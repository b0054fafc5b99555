"""Read damaged videos by the thousand, `python scripts/fuzz_decoding.py`: none may crash, hang, or fail without a reason.

The committed result is `bench/results/fuzz.json`.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from codec_videos import write_videos

from flowless.console import emit, progress
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json
from flowless.machine import usable_cores

#: Ways of damaging a file.
KINDS = ("bits", "cut", "swapped", "absurd sizes", "negative", "endless", "zeros", "doubled")


@dataclass(frozen=True, kw_only=True)
class FuzzArgs:
    """Damage videos in many ways and read each as `flowless scan` and `flowless predict` do, in processes with bounds on time and memory.

    A file may be read, or refused with a reason. It is unexplained where another exception is raised, or where a scan accepts it and it
    cannot be read afterwards. A process that dies is a crash, one that takes too long a hang; either is counted for that file, and the
    others are read by a new process.
    """

    videos: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Videos to damage, or folders of them. None: one of every codec that PyAV encodes is made, in every container that takes it."""
    files: int = 10_000
    """Damaged files."""
    seconds: float = 20.0
    """Time that one file may take."""
    memory: int = 4096
    """MB of memory that one process may have."""
    workers: int | None = None
    """Processes; by default one a processor core."""
    seed: int = 0
    """Of the damage."""
    out: Path = Path("runs/bench/fuzz.json")
    """JSON to write."""
    keep: Path | None = None
    """Folder for copies of the files that crash, hang or stay unexplained."""
    json: bool = False
    """Print one JSON document instead of the table."""

    def __post_init__(self) -> None:
        """Refuse bounds in which nothing can be read."""
        wrong = [name for name in ("files", "seconds", "memory") if getattr(self, name) <= 0]
        if wrong:
            raise FlowlessError(f"fuzz_decoding: {', '.join(wrong)} must be above 0.")


def main(args: Sequence[str]) -> int:
    """Return 3 where a file crashed, hung or stayed unexplained, else 0."""
    settings = tyro.cli(FuzzArgs, prog="python scripts/fuzz_decoding.py", description=inspect.getdoc(FuzzArgs), args=args)
    document = measure(settings)
    emit(document, _table(document), as_json=settings.json)
    return 3 if any(document[name] for name in ("crashes", "hangs", "unexplained")) else 0


def measure(settings: FuzzArgs) -> dict[str, Any]:
    """Damage and read all files; write the document and return it.

    Raises:
        FlowlessError: A named video is not there, or the document cannot be written.
    """
    from flowless.bench.lib.sample_videos import videos_of
    from flowless.machine import environment

    refuse_unwritable(settings.out)
    with tempfile.TemporaryDirectory(prefix="flowless-fuzz-") as work:
        folder = Path(work)
        sources = videos_of(settings.videos) or list(write_videos(folder / "whole", frames=12))
        found = _read_all(sources, folder, settings)
    by_kind: dict[str, dict[str, int]] = {}
    for item in found:
        row = by_kind.setdefault(item.kind, {})
        row[item.verdict] = row.get(item.verdict, 0) + 1
    bad = [item for item in found if item.verdict in {"crash", "hang", "unexplained"}]
    document = {
        "environment": environment(),
        "files": len(found),
        "sources": len(sources),
        "bounds": {"seconds": settings.seconds, "memory_mb": settings.memory},
        "seed": settings.seed,
        "crashes": sum(item.verdict == "crash" for item in bad),
        "hangs": sum(item.verdict == "hang" for item in bad),
        "unexplained": sum(item.verdict == "unexplained" for item in bad),
        "by_kind": by_kind,
        "slowest_seconds": round(max((item.seconds for item in found), default=0.0), 2),
        "bad": [
            {"number": item.number, "kind": item.kind, "source": item.source, "verdict": item.verdict, "why": item.why} for item in bad
        ],
    }
    write_json(settings.out, document)
    return document


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One damaged file and the result of reading it."""

    number: int
    kind: str
    source: str
    verdict: str = ""
    why: str = ""
    seconds: float = 0.0


@dataclass
class _Worker:
    """A process that reads files, and the file that it reads."""

    process: Any
    link: Connection
    item: _Item | None = None
    path: Path = field(default_factory=Path)
    since: float = 0.0


def damaged(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return a file's bytes, damaged in one of `KINDS`."""
    changed = bytearray(data)
    size = len(changed)

    def somewhere(length: int = 1) -> int:
        # Half of all damage goes into the first 4 KB or the last 16 KB, where containers keep their headers and tables.
        regions = [(0, min(4096, size)), (max(0, size - 16384), size), (0, size), (0, size)]
        low, high = regions[int(rng.integers(len(regions)))]
        return int(rng.integers(low, max(low + 1, high - length)))

    if kind == "bits":
        for _ in range(int(rng.integers(1, 64))):
            changed[somewhere()] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        return bytes(changed[: int(rng.integers(1, size))])
    elif kind == "swapped":
        for _ in range(int(rng.integers(1, 4))):
            length = int(rng.integers(4, max(5, size // 8)))
            one, other = somewhere(length), somewhere(length)
            changed[one : one + length], changed[other : other + length] = changed[other : other + length], changed[one : one + length]
    elif kind in {"absurd sizes", "negative"}:
        for _ in range(int(rng.integers(1, 12))):
            place = somewhere(4) // 4 * 4
            value = [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, int(rng.integers(2**32))][int(rng.integers(4))]
            value = value | 0x80000000 if kind == "negative" else value
            changed[place : place + 4] = value.to_bytes(4, "big" if rng.integers(2) else "little")
    elif kind == "endless":
        return bytes(changed) + bytes(changed[somewhere() :]) * int(rng.integers(1, 6))
    elif kind == "zeros":
        place, length = somewhere(), int(rng.integers(1, max(2, size // 2)))
        changed[place : place + length] = bytes(len(changed[place : place + length]))
    else:
        place, length = somewhere(), int(rng.integers(1, max(2, size // 4)))
        changed[place:place] = changed[place : place + length]
    return bytes(changed)


def _damaged_files(sources: Sequence[Path], folder: Path, settings: FuzzArgs) -> Iterator[tuple[_Item, Path]]:
    rng = np.random.default_rng(settings.seed)
    for number in range(settings.files):
        source, kind = sources[number % len(sources)], KINDS[int(rng.integers(len(KINDS)))]
        path = folder / f"{number}{source.suffix}"
        path.write_bytes(damaged(source.read_bytes(), kind, rng))
        yield _Item(number=number, kind=kind, source=source.name), path


def _read_all(sources: Sequence[Path], folder: Path, settings: FuzzArgs) -> list[_Item]:
    found: list[_Item] = []
    waiting = _damaged_files(sources, folder, settings)
    workers = [_begin(settings) for _ in range(settings.workers or usable_cores())]

    def done(worker: _Worker, verdict: str, why: str) -> None:
        assert worker.item is not None
        found.append(replace(worker.item, verdict=verdict, why=why, seconds=time.monotonic() - worker.since))
        if settings.keep and verdict in {"crash", "hang", "unexplained"}:
            settings.keep.mkdir(parents=True, exist_ok=True)
            (settings.keep / worker.path.name).write_bytes(worker.path.read_bytes())
        worker.path.unlink(missing_ok=True)
        worker.item = None
        bar.advance(task)

    with progress() as bar:
        task = bar.add_task("reading damaged files", total=settings.files)
        try:
            while True:
                for worker in workers:
                    if worker.item is None and (following := next(waiting, None)) is not None:
                        worker.item, worker.path = following
                        worker.since = time.monotonic()
                        worker.link.send(str(worker.path))
                busy = [worker for worker in workers if worker.item is not None]
                if not busy:
                    return found
                ready = wait([worker.link for worker in busy], timeout=1.0)
                for place, worker in enumerate(workers):
                    if worker.item is None:
                        continue
                    if worker.link in ready:
                        try:
                            done(worker, *worker.link.recv())
                            continue
                        except (EOFError, ConnectionError):
                            worker.process.join()
                            done(worker, "crash", f"the process ended with {worker.process.exitcode}")
                    elif time.monotonic() - worker.since > settings.seconds:
                        done(worker, "hang", f"not done after {settings.seconds:g} s")
                    else:
                        continue
                    worker.process.kill()
                    workers[place] = _begin(settings)
        finally:
            for worker in workers:
                worker.process.kill()


def _begin(settings: FuzzArgs) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, settings.memory), daemon=True)
    process.start()
    there.close()
    return _Worker(process=process, link=here)


def _work(link: Connection, memory: int) -> None:
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory * 2**20, memory * 2**20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            path = link.recv()
        except (EOFError, KeyboardInterrupt):
            return
        link.send(_verdict(path))


def _verdict(path: str) -> tuple[str, str]:
    """Read a file as a scan does, and where that accepts it, as a prediction does."""
    from flowless.pipeline.clip.preprocess import load_clip
    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.pipeline.dataset.scan_jobs import Job, look

    found = look(Job(path=path, parts=((None, None),), decode=True))
    if "failed (" in found.reason:
        return "unexplained", found.reason
    spec = ClipSpec(segments=4, frames_per_segment=1, height=32, width=32, short_side=32)
    try:
        load_clip(path, spec)
    except FlowlessError as error:
        return ("refused", found.reason) if found.reason else ("unexplained", f"a scan accepts it, then: {error}")
    except Exception as error:
        return "unexplained", f"{type(error).__name__}: {error}"
    return ("read in part", found.reason) if found.reason else ("read", "")


def _table(document: dict[str, Any]) -> Any:
    from rich.table import Table

    verdicts = ("read", "read in part", "refused", "crash", "hang", "unexplained")
    table = Table("damage", *verdicts, title=f"{document['files']} damaged files")
    for kind, row in document["by_kind"].items():
        table.add_row(kind, *(str(row.get(verdict, 0)) for verdict in verdicts))
    return table


if __name__ == "__main__":
    from flowless.cli import run_command

    sys.exit(run_command(lambda: main(sys.argv[1:])))

"""Inspects files in parallel worker processes, one job per file; a crash of a decoder affects only its file."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flowless.errors import FlowlessError
from flowless.interrupts import WorkerPool
from flowless.pipeline.dataset.index import stamp_of
from flowless.pipeline.video.container import Unreadable
from flowless.pipeline.video.info import VideoInfo
from flowless.pipeline.video.open_reader import open_reader

#: Time limit of a file: a minimum in seconds, plus its size at the slowest decoding rate in bytes per second.
_MIN_TIMEOUT, _MIN_BYTES_PER_SECOND = 300.0, 100_000
#: Jobs submitted per worker: enough to keep it busy, few enough to stop soon.
_JOBS_PER_WORKER = 4


@dataclass(frozen=True, kw_only=True)
class Job:
    """A file to inspect, and the labelled parts of it."""

    path: str
    parts: tuple[tuple[float | None, float | None], ...]
    """`(start, end)` of each part in seconds; None: the beginning or end of the file."""
    decode: bool
    """Whether to decode every frame."""
    rate: float | None = None
    """Frames per second of a folder of pictures."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of a job: either `reason`, or the other fields."""

    reason: str = ""
    """Why the file is unusable; "" if it is usable."""
    parts: tuple[tuple[int, int], ...] = ()
    """`(first frame, number of frames)` of each part of the job."""
    info: VideoInfo | None = None
    stamp: tuple[int, int] = (-1, -1)
    """See `VideoRecord.stamp`."""


def inspect_file(job: Job) -> Inspection:
    """Inspect one file; any error becomes the result's `reason`."""
    try:
        with open_reader(job.path, rate=job.rate) as video:
            stamp = stamp_of(job.path)
            info = video.prove() if job.decode else video.info
        parts = tuple(_frames_of(info, start, end) for start, end in job.parts)
    except Unreadable as error:
        return Inspection(reason=error.reason)
    except FlowlessError as error:
        return Inspection(reason=str(error).rstrip("."))
    except Exception as error:  # an unforeseen error in one file must not end a long scan
        return Inspection(reason=f"inspecting it failed ({type(error).__name__}: {error})")
    return Inspection(parts=parts, info=info, stamp=stamp)


def inspect_with_timeout(job: Job) -> Inspection:
    """Inspect one file in a worker process, which SIGALRM kills if the decoder hangs."""
    if hasattr(signal, "setitimer"):
        with suppress(OSError):
            signal.setitimer(signal.ITIMER_REAL, _MIN_TIMEOUT + Path(job.path).stat().st_size / _MIN_BYTES_PER_SECOND)
    try:
        return inspect_file(job)
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def run_jobs(jobs: Sequence[Job], *, workers: int) -> Iterator[tuple[Job, Inspection]]:
    """Yield each job with its result, in the order of completion; close the generator to stop early."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, inspect_file(job)
        return
    pending = list(reversed(jobs))
    while pending:
        lost: list[Job] = []
        yield from _run_pool(pending, lost, workers=workers)
        # A worker died, and which job killed it is unknown: run each job that was in progress in its own process.
        for job in lost:
            yield job, _inspect_alone(job)


def _run_pool(pending: list[Job], lost: list[Job], *, workers: int) -> Iterator[tuple[Job, Inspection]]:
    """Run the jobs in `pending`, which it empties, until all are done or a worker dies; then `lost` has the jobs in progress."""
    pool = WorkerPool(min(workers, len(pending)))
    running: dict[Future[Inspection], Job] = {}
    job = pending[-1]
    try:
        while pending or running:
            while pending and len(running) < workers * _JOBS_PER_WORKER and not lost:
                job = pending.pop()
                running[pool.submit(inspect_with_timeout, job)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(job)
                else:
                    yield job, future.result()
            if lost and not running:
                return
    except BrokenProcessPool:  # raised by submit(job), the last job taken from `pending`
        lost.extend([job, *running.values()])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _inspect_alone(job: Job) -> Inspection:
    pool = WorkerPool(1)
    try:
        return pool.submit(inspect_with_timeout, job).result()
    except BrokenProcessPool:
        return Inspection(reason="the decoder crashed or hung")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _frames_of(info: VideoInfo, start: float | None, end: float | None) -> tuple[int, int]:
    first = 0 if start is None else info.frame_at(start)
    last = info.frames if end is None else info.frame_at(end)
    return first, max(last - first, 0)

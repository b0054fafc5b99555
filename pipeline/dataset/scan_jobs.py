"""Looking at files in parallel: one job a file, in processes, so that a decoder that crashes takes only its file along."""

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

#: Seconds that a file may take at least, and bytes a second that the slowest decoding reads: what takes longer hangs.
_LEAST_SECONDS, _SLOWEST = 300.0, 100_000
#: Jobs that wait in the pool for each worker: enough to keep it busy, few enough to stop soon.
_QUEUE = 4


@dataclass(frozen=True, kw_only=True)
class Job:
    """A file to look at, and the parts of it that are meant."""

    path: str
    parts: tuple[tuple[float | None, float | None], ...]
    """`(start, end)` in seconds of each part; None is the file's beginning and end."""
    decode: bool
    """Whether to decode every frame."""
    rate: float | None = None
    """Pictures a second of a folder of pictures."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a job found: either a reason for refusal, or the rest."""

    reason: str = ""
    parts: tuple[tuple[int, int], ...] = ()
    """`(first frame, frames)` of each part of the job; no frames where the part holds none."""
    info: VideoInfo | None = None
    stamp: tuple[int, int] = (-1, -1)
    """See `VideoRecord.stamp`."""


def look(job: Job) -> Found:
    """Look at one file; whatever is wrong with it becomes a reason."""
    try:
        with open_reader(job.path, rate=job.rate) as video:
            stamp = stamp_of(job.path)
            info = video.prove() if job.decode else video.info
        parts = tuple(_frames_of(info, start, end) for start, end in job.parts)
    except Unreadable as error:
        return Found(reason=error.reason)
    except FlowlessError as error:
        return Found(reason=str(error).rstrip("."))
    except Exception as error:  # a scan of a week must not end at one file that nobody foresaw
        return Found(reason=f"looking at it failed ({type(error).__name__}: {error})")
    return Found(parts=parts, info=info, stamp=stamp)


def look_in_time(job: Job) -> Found:
    """Look at one file in a worker process, which the system ends where a decoder does not come to an end."""
    if hasattr(signal, "setitimer"):
        with suppress(OSError):
            signal.setitimer(signal.ITIMER_REAL, _LEAST_SECONDS + Path(job.path).stat().st_size / _SLOWEST)
    try:
        return look(job)
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def run_jobs(jobs: Sequence[Job], *, workers: int) -> Iterator[tuple[Job, Found]]:
    """Yield each job with what it found, as they finish; close the generator, or interrupt it, to stop early."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, look(job)
        return
    waiting = list(reversed(jobs))
    while waiting:
        lost: list[Job] = []
        yield from _run_pool(waiting, lost, workers=workers)
        # A process died. Which job it was is not known: each that was under way gets a process of its own.
        for job in lost:
            yield job, _look_alone(job)


def _run_pool(waiting: list[Job], lost: list[Job], *, workers: int) -> Iterator[tuple[Job, Found]]:
    """Take jobs off `waiting` until none is left, or until a process dies; then `lost` holds those under way."""
    pool = WorkerPool(min(workers, len(waiting)))
    running: dict[Future[Found], Job] = {}
    job = waiting[-1]
    try:
        while waiting or running:
            while waiting and len(running) < workers * _QUEUE and not lost:
                job = waiting.pop()
                running[pool.submit(look_in_time, job)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(job)
                else:
                    yield job, future.result()
            if lost and not running:
                return
    except BrokenProcessPool:  # raised by submit; the job that it would not take is the last one taken
        lost.extend([job, *running.values()])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _look_alone(job: Job) -> Found:
    pool = WorkerPool(1)
    try:
        return pool.submit(look_in_time, job).result()
    except BrokenProcessPool:
        return Found(reason="the decoder crashed on it, or did not come to an end")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _frames_of(info: VideoInfo, start: float | None, end: float | None) -> tuple[int, int]:
    first = 0 if start is None else info.frame_at(start)
    last = info.frames if end is None else info.frame_at(end)
    return first, max(last - first, 0)

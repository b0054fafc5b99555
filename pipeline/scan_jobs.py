"""Looking at files in parallel: one job a file, in processes, so that a decoder that crashes takes only its file along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from flowless.errors import FlowlessError
from flowless.interrupts import WorkerPool
from flowless.pipeline.container import Unreadable
from flowless.pipeline.probe import VideoInfo, probe

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


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a job found: either a reason for refusal, or the rest."""

    reason: str = ""
    parts: tuple[tuple[int, int], ...] = ()
    """`(first frame, frames)` of each part of the job; no frames where the part holds none."""
    seconds: float = 0.0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    rotation: int = 0
    codec: str = ""
    pixel_format: str = ""
    variable_rate: bool = False
    key_frames: tuple[int, ...] = ()


def look(job: Job) -> Found:
    """Look at one file; whatever is wrong with it becomes a reason."""
    try:
        info = probe(job.path, decode=job.decode)
        parts = tuple(_frames_of(info, start, end) for start, end in job.parts)
    except Unreadable as error:
        return Found(reason=error.reason)
    except FlowlessError as error:
        return Found(reason=str(error))
    except Exception as error:  # a scan of a week must not end at one file that nobody foresaw
        return Found(reason=f"looking at it failed ({type(error).__name__}: {error})")
    return Found(
        parts=parts,
        seconds=info.frames / info.fps if info.fps else 0.0,
        fps=info.fps,
        width=info.width,
        height=info.height,
        rotation=info.rotation,
        codec=info.codec,
        pixel_format=info.pixel_format,
        variable_rate=info.variable_rate,
        key_frames=info.key_frames,
    )


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
                running[pool.submit(look, job)] = job
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
        return pool.submit(look, job).result()
    except BrokenProcessPool:
        return Found(reason="the decoder crashed on it")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _frames_of(info: VideoInfo, start: float | None, end: float | None) -> tuple[int, int]:
    first = 0 if start is None else info.frame_at(start)
    last = info.frames if end is None else info.frame_at(end)
    return first, max(last - first, 0)

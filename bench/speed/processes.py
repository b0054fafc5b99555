"""Measure predictions of many videos by a process per core, each with an engine of one thread, beside one engine with all threads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from flowless.bench.lib.run_bench import TimingArgs, run_bench
from flowless.bench.lib.sample_videos import sample_videos, videos_of
from flowless.bench.lib.tables import rows_table
from flowless.bench.speed.random_network import NetworkArgs
from flowless.console import log
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.timing import time_interleaved

if TYPE_CHECKING:
    from flowless.engines.engine import Engine

#: Videos that each process predicts in a round, on average.
_EACH = 8
#: The engine of a process that was spawned here.
_engine: list[Engine] = []


@dataclass(frozen=True, kw_only=True)
class Processes(NetworkArgs, TimingArgs):
    """Measure videos per second, from file to scores: one engine with all threads, and a process per core with one thread each.

    A network with random weights is exported and built first, unless --bundle names one. Both run in processes of their own that have
    warmed up, in turns.
    """

    bundle: Path | None = None
    """Measure an engine of this bundle, instead of exporting and building one."""
    target: Literal["openvino", "onnxruntime"] = "openvino"
    """Library that runs it, on the CPU."""


def main(args: Sequence[str]) -> None:
    """`flowless bench processes`."""
    run_bench("processes", Processes, args, measure=measure, tables=tables)


def measure(settings: Processes) -> dict[str, Any]:
    """Make what is not given, measure both, and return the document's parts."""
    cores = settings.threads or usable_cores()
    with tempfile.TemporaryDirectory(prefix="flowless-processes-") as folder, ExitStack() as stack:
        work = Path(folder)
        bundle = _bundle(settings, work)
        videos = videos_of(settings.videos) if settings.videos else sample_videos(work / "videos")
        queue = [str(videos[number % len(videos)]) for number in range(_EACH * cores)]
        # name -> its pool, threads of each engine, and how many parts the queue is cut into
        ways = {"one engine, all threads": (1, cores, 1), "a process per core": (cores, 1, len(queue))}
        pools: dict[str, ProcessPoolExecutor] = {}
        for name, (processes, threads, _) in ways.items():
            log.print(f"starting: {name} …", style="dim")
            started = (bundle, settings.target, threads)
            pools[name] = stack.enter_context(ProcessPoolExecutor(processes, get_context("spawn"), _start, started))
        peaks: dict[str, dict[int, float]] = {name: {} for name in ways}
        runs = {name: partial(_predict, pools[name], queue, parts, peaks[name]) for name, (_, _, parts) in ways.items()}
        timings = time_interleaved(runs, runs=settings.runs)
        first, rows = next(iter(timings.values())), []
        for name, timing in timings.items():
            processes, threads, _ = ways[name]
            rows.append(
                {
                    "name": name,
                    "processes": processes,
                    "threads": threads,
                    **timing.to_dict(),
                    "videos_per_s": round(timing.per_second(len(queue)), 3),
                    "times_one_engine": round(first.p50_ms / timing.p50_ms, 3),
                    "peak_mb": round(sum(peaks[name].values()), 1),
                }
            )
    return {"rows": rows, "settings": {"videos_per_round": len(queue)}}


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the rows as a table."""
    columns = "name processes threads videos_per_s times_one_engine peak_mb"
    return [rows_table("videos from file to scores", document["rows"], columns)]


def _bundle(settings: Processes, work: Path) -> Path:
    if settings.bundle:
        if given := [field.name for field in fields(NetworkArgs) if getattr(settings, field.name) != field.default]:
            raise FlowlessError(f"bench processes: --bundle has its network; leave --{' --'.join(given)} out.")
        import flowless

        flowless.load(settings.bundle, settings.target)  # its errors here, not in a process that starts
        return settings.bundle
    from flowless.export.build_engine import build
    from flowless.export.verify.checks import Checks

    bundle = settings.export(work).folder
    # Parity is not a gate: noise and edges of full contrast are foreign to random weights.
    build(bundle, target=settings.target, checks=Checks(parity=False))
    return bundle


def _start(bundle: Path, target: str, threads: int) -> None:
    import flowless

    _engine.append(flowless.load(bundle, target, threads=threads, warm_up=True))


def _predict(pool: ProcessPoolExecutor, queue: list[str], parts: int, peaks: dict[int, float]) -> None:
    """Predict all videos, cut into parts that any process takes; note each process's peak of memory."""
    peaks.update(pool.map(_predict_part, _cut(queue, parts)))


def _cut(queue: list[str], parts: int) -> Iterator[list[str]]:
    size = -(-len(queue) // parts)
    return (queue[start : start + size] for start in range(0, len(queue), size))


def _predict_part(paths: list[str]) -> tuple[int, float]:
    """Predict videos, several of them with decoding overlapped; return the process's number and its peak of resident MB."""
    (engine,) = _engine
    found = [engine.predict(paths[0])] if len(paths) == 1 else engine.predict_many(paths)
    if failed := [prediction.error for prediction in found if prediction.error]:
        raise FlowlessError(failed[0])
    # Not getrusage's ru_maxrss, which begins with the peak of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return os.getpid(), int(status["VmHWM"].split()[0]) / 1024

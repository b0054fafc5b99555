"""Measure what an application that embeds libflowless waits for, beside Python, Pillow and OpenVINO's bare call."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image
from rich.table import Table

from flowless.bench.lib.goals import goal
from flowless.bench.lib.run_bench import BenchArgs, run_bench
from flowless.bench.lib.tables import rows_table
from flowless.bench.speed.random_network import NetworkArgs
from flowless.console import log
from flowless.engines import load
from flowless.engines.backends.openvino_core import HINTS
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import resize_and_crop, resized_size
from flowless.timing import Timing

#: Columns and rows of the frames that are prepared.
FRAMES = {"480p": (854, 480), "1080p": (1920, 1080), "4K": (3840, 2160)}


@dataclass(frozen=True, kw_only=True)
class Embed(NetworkArgs, BenchArgs):
    """Time a clip and the preparation of a frame through libflowless, beside the same in Python and beside OpenVINO and Pillow alone.

    A network with random weights is exported and built for OpenVINO. All take turns, round by round. Needs the C++ library: make cpp.
    """

    program: Path = Path("build/cpp/release/tests/time_engine")
    """The program that times the library; make cpp builds it."""
    runs: int = 40
    """Rounds; everything runs once in each."""
    threads: int = 0
    """CPU threads of every engine; 0: the library chooses."""
    calls: int = 100_000
    """Calls of a small engine over which the process's memory is measured."""


def main(args: Sequence[str]) -> None:
    """`flowless bench embed`."""
    run_bench("embed", Embed, args, measure=measure, tables=tables)


class TimeEngine:
    """The C++ program: a line of numbers for each command."""

    def __init__(self, program: Path, bundle: Path, *, threads: int) -> None:
        engine = bundle / "openvino-fp32" / "model.xml"
        command = [str(program.absolute()), str(bundle), str(engine), str(threads), next(iter(HINTS))]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._child.kill()
        self._child.communicate()

    def __call__(self, command: str) -> list[float]:
        """Run a command of the program and return its numbers.

        Raises:
            FlowlessError: The program ended.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(command + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            _, reason = self._child.communicate()
            raise FlowlessError(f"bench embed: the C++ program ended: {reason.strip()}")
        return [float(number) for number in line.split()]


def measure(settings: Embed) -> dict[str, Any]:
    """Export, build and measure; return the document's parts."""
    from flowless.export.build_engine import build
    from flowless.export.verify.checks import Checks

    if not settings.program.is_file():
        raise FlowlessError(f"{settings.program}: no such program. Build the C++ library first: make cpp")
    with tempfile.TemporaryDirectory(prefix="flowless-bench-") as folder:
        work = Path(folder)
        bundle = settings.export(work).folder
        build(bundle, target="openvino", checks=Checks(parity=False))
        small = NetworkArgs(model="tsn-r18", size=32, width=0.25, blocks=1, classes=4)
        tiny = small.export(work / "small").folder
        build(tiny, target="openvino", checks=Checks(parity=False))
        log.print("measuring a clip and a frame …", style="dim")
        with TimeEngine(settings.program, bundle, threads=settings.threads) as program:
            clip, overhead = _clip_rows(program, settings, bundle)
            frames = [_frame_row(program, settings, name, *size) for name, size in FRAMES.items()]
        log.print(f"measuring memory over {settings.calls} calls …", style="dim")
        with TimeEngine(settings.program, tiny, threads=1) as program:
            before, after, largest = program(f"calls {settings.calls}")
    memory = {"calls": settings.calls, "before_mb": before / 1024, "after_mb": after / 1024, "largest_mb": largest / 1024}
    return {"clip": clip, "overhead": overhead, "frames": frames, "memory": memory, "goals": _goals(overhead, frames, memory)}


def _clip_rows(program: TimeEngine, settings: Embed, bundle: Path) -> tuple[list[dict[str, Any]], float]:
    """Return the time of a clip by each way, and the median over the rounds of libflowless's time over the bare call's, less 1."""
    engine = load(bundle, "openvino", threads=settings.threads or None)
    clip = np.random.default_rng(0).integers(0, 256, (1, *engine.spec.shape), dtype=np.uint8)
    times: dict[str, list[float]] = {"OpenVINO alone, C++": [], "libflowless": [], "Python": []}
    for turn in range(settings.runs + 2):
        bare, own = program("run")
        engine(clip)  # the other process's data are in the caches
        started = time.perf_counter()
        engine(clip)
        python = time.perf_counter() - started
        program("run")
        if turn >= 2:  # the first are warm-up
            for values, seconds in zip(times.values(), (bare / 1e3, own / 1e3, python), strict=True):
                values.append(seconds)
    ratios = [own / bare for bare, own in zip(times["OpenVINO alone, C++"], times["libflowless"], strict=True)]
    rows = [{"way": way, **Timing.of(values).to_dict()} for way, values in times.items()]
    return rows, round(float(np.median(ratios)) - 1, 5)


def _frame_row(program: TimeEngine, settings: Embed, name: str, width: int, height: int) -> dict[str, Any]:
    """Return the time to resize and crop a frame: by libflowless, by Python, and of Pillow's resize alone."""
    spec = settings.spec()
    frame = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    image, size = Image.fromarray(frame[0]), resized_size(width, height, short_side=spec.short_side)
    times: dict[str, list[float]] = {"libflowless": [], "python": [], "pillow": []}
    for turn in range(settings.runs + 2):
        (own,) = program(f"prepare {width} {height}")
        started = time.perf_counter()
        resize_and_crop(frame, spec)
        middle = time.perf_counter()
        image.resize(size, Image.Resampling.BILINEAR)
        ended = time.perf_counter()
        if turn >= 2:
            for values, seconds in zip(times.values(), (own / 1e3, middle - started, ended - middle), strict=True):
                values.append(seconds)
    medians = {f"{way}_ms": round(1e3 * float(np.median(values)), 4) for way, values in times.items()}
    ratio = float(np.median(np.divide(times["pillow"], times["libflowless"])))
    return {"frame": name, "size": f"{width} x {height}", **medians, "times_pillow": round(ratio, 3)}


def _goals(overhead: float, frames: list[dict[str, Any]], memory: dict[str, Any]) -> list[dict[str, Any]]:
    slowest = min(row["times_pillow"] for row in frames)
    growth = round(max(memory["after_mb"], memory["largest_mb"]) - memory["before_mb"], 2)
    return [
        goal("libflowless over OpenVINO's own time for a clip, %", 1.0, round(100 * overhead, 3), at_most=True),
        goal("preparing a frame, times Pillow's speed, slowest size", 1.0, slowest),
        goal("MB of memory more, from 1 % of the calls on", 1.0, growth, at_most=True),
    ]


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the document as tables."""
    columns = {"way": "a clip", "p50_ms": "ms, median", "p99_ms": "p99", "minimum_ms": "least"}
    frames = {
        "frame": "frame",
        "size": "pixels",
        "libflowless_ms": "libflowless, ms",
        "python_ms": "Python",
        "pillow_ms": "Pillow's resize",
    }
    return [
        rows_table("One clip", document["clip"], columns),
        rows_table("Resizing and cropping a frame", document["frames"], {**frames, "times_pillow": "× Pillow"}),
        rows_table("Memory of a process", [document["memory"]], {key: key.replace("_", " ") for key in document["memory"]}),
    ]

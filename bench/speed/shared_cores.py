"""Measure what training, evaluation and each engine lose where another program wants the cores too."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch

import numpy as np
from rich.table import Table

import flowless
from flowless.bench.lib.goals import goal
from flowless.bench.lib.run_bench import BenchArgs, run_bench
from flowless.bench.lib.runners import torch_runners
from flowless.bench.lib.tables import rows_table
from flowless.bench.speed.random_network import NetworkArgs
from flowless.console import log
from flowless.engines.bundle.manifest import read_manifest
from flowless.errors import FlowlessError, first_line
from flowless.machine import usable_cores
from flowless.pipeline import DatasetIndex
from flowless.thread_waiting import DECIDED_BY, let_waiting_threads_sleep

#: How threads wait: as in every flowless command, or by the libraries' defaults, the baseline.
ASLEEP, DEFAULTS = "asleep", "libraries' defaults"
#: Sets the libraries' defaults: with this policy flowless changes nothing, and the count is libgomp's own without a policy.
_DEFAULT_VARIABLES = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "300000"}
Kind = Literal["training", "evaluation", "pytorch", "openvino", "onnxruntime"]


@dataclass(frozen=True, kw_only=True)
class SharedCores(BenchArgs):
    """Measure work alone, beside a program that keeps one core busy, and beside a second of its kind, over a fair share of the cores.

    A piece of work is an epoch of a small PAN-Lite, the evaluation of its checkpoint, or a clip through PAN-Lite ResNet-50 (PyTorch eager
    and each engine, fp32). Fair share: what one program does not want the other gets. On C cores, work that uses all of them takes
    C / (C - 1) times as long beside one busy core and twice as long beside a second of its kind; work that uses one core of two takes no
    longer beside either. A ratio of 1 is fair, 1.3 at most is the goal. Everything is measured twice, interleaved: as flowless commands
    run (threads that wait sleep), and by the libraries' defaults (they keep their core busy for a while), the baseline.
    """

    kinds: tuple[Kind, ...] = get_args(Kind)
    """What to measure."""
    quick: bool = False
    """One piece of work each time, with a small network: shows that everything runs, measures little."""


def main(args: Sequence[str]) -> None:
    """`flowless bench shared-cores`."""
    run_bench("shared-cores", SharedCores, args, measure=measure, tables=tables)


def measure(settings: SharedCores) -> dict[str, Any]:
    """Make the inputs, measure, and return the document's parts; no process and no file is left behind."""
    network = NetworkArgs(model="pan-lite-r18", size=64, width=0.25, blocks=1) if settings.quick else NetworkArgs()
    with tempfile.TemporaryDirectory(prefix="flowless-bench-") as folder:
        log.print("making videos, a checkpoint and engines …", style="dim")
        _make_inputs(Path(folder), network)
        rows = [row for kind in settings.kinds for row in _rows(kind, Path(folder), quick=settings.quick)]
    return {"rows": rows, "goals": goals(rows)}


def _rows(kind: str, folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    pieces: dict[str, dict[str, list[Piece]]] = {way: {"alone": [], "busy": [], "second": []} for way in (ASLEEP, DEFAULTS)}
    seconds, rounds = (0, 1) if quick else (6, 3)
    with ExitStack() as stack:
        pairs = {way: [stack.enter_context(worker(kind, folder, waiting=way)) for _ in range(2)] for way in pieces}
        for number in range(rounds):
            for way, (first, second) in pairs.items():
                log.print(f"{kind}, {way}, round {number + 1} …", style="dim", markup=False)
                pieces[way]["alone"] += side_by_side([first], seconds)
                with worker("busy", folder):
                    pieces[way]["busy"] += side_by_side([first], seconds)
                pieces[way]["second"] += side_by_side([first, second], seconds)
    # Of threads that sleep, so that waiting does not count as work.
    used = min(usable_cores(), statistics.median(piece.cpu_s / piece.seconds for piece in pieces[ASLEEP]["alone"]))
    return [row_of(kind, way, found, used=used, cores=usable_cores()) for way, found in pieces.items()]


def fair_share(used: float, *, other: float, cores: int) -> float:
    """Return how many cores a program that would use `used` gets beside one that would use `other`."""
    return used if used + other <= cores else min(used, max(cores / 2, cores - other))


def row_of(kind: str, way: str, pieces: Mapping[str, Sequence[Piece]], *, used: float, cores: int) -> dict[str, Any]:
    """Return the JSON row of one kind and way of waiting: times, and their ratios to the fair times."""
    times = {place: statistics.median(piece.seconds for piece in found) for place, found in pieces.items()}
    row: dict[str, Any] = {"kind": kind, "waiting": way, "alone_ms": round(1e3 * times["alone"], 1), "cores_used": round(used, 2)}
    for name, other in (("busy", 1.0), ("second", used)):
        fair = times["alone"] * used / fair_share(used, other=other, cores=cores)
        row |= {f"{name}_ms": round(1e3 * times[name], 1), f"{name}_ratio": round(times[name] / fair, 2)}
    return row


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for every kind, as flowless runs it, whether it takes at most 1.3 times its fair time."""
    beside = {"busy_ratio": "a busy core", "second_ratio": "a second of its kind"}
    ratios = [(row["kind"], what, row[key]) for row in rows if row["waiting"] == ASLEEP for key, what in beside.items()]
    return [goal(f"{kind} beside {what}, over its fair time", 1.3, ratio, at_most=True) for kind, what, ratio in ratios]


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the rows as a table."""
    return [rows_table("ratio: time over fair time", document["rows"], "kind waiting alone_ms cores_used busy_ratio second_ratio")]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece of work that was done; `end` is a time of the system's monotonic clock, `cpu_s` the processor time of all threads."""

    seconds: float
    end: float
    cpu_s: float


@contextmanager
def worker(kind: str, folder: Path, *, waiting: str = ASLEEP) -> Iterator[Connection]:
    """Start a process that does one of `Kind`, or keeps a core busy (`busy`), for the block; its link takes times and returns pieces."""
    link, there = (context := get_context("spawn")).Pipe()
    process = context.Process(target=_work, args=(kind, folder, there))
    kept = {name: value for name, value in os.environ.items() if name not in DECIDED_BY}
    # DALI's temporary files are removed with the folder, however the process ends.
    with patch.dict(os.environ, {**kept, "TMPDIR": str(folder), **(_DEFAULT_VARIABLES if waiting == DEFAULTS else {})}, clear=True):
        process.start()
    there.close()
    try:
        _receive(link)
        yield link
    finally:
        process.kill()
        process.join()
        link.close()


def side_by_side(links: Sequence[Connection], seconds: float) -> list[Piece]:
    """Let workers work at the same time for so long, one piece each at least; return the pieces that ended while all worked."""
    for link in links:
        link.send(time.monotonic() + seconds)
    found = [_receive(link) for link in links]
    until = min(pieces[-1].end for pieces in found)
    return [piece for pieces in found for piece in pieces if piece.end <= until]


def _receive(link: Connection) -> Any:
    try:
        message = link.recv()
    except (EOFError, ConnectionError):
        message = FlowlessError("bench shared-cores: a process that works has ended by itself.")
    if isinstance(message, FlowlessError):
        raise message
    return message


def _work(kind: str, folder: Path, link: Connection) -> None:
    """Work, in the new process, until the link is closed."""
    os.setsid()  # Ctrl-C is for the command, which ends its workers
    with (folder / "workers.log").open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    let_waiting_threads_sleep()
    try:
        (work := _work_of(kind, folder))()  # the first call loads and compiles
        link.send("ready")
        while kind == "busy" and not link.poll():
            work()
        while True:
            until, pieces = link.recv(), []
            while not pieces or time.monotonic() < until:
                start, spent = time.monotonic(), time.process_time()
                work()
                end = time.monotonic()
                pieces.append(Piece(seconds=end - start, end=end, cpu_s=time.process_time() - spent))
            link.send(pieces)
    except (EOFError, ConnectionError):  # the command has ended
        return
    except Exception as error:
        link.send(FlowlessError(f"bench shared-cores: {kind} failed: {first_line(error)}"))


def _make_inputs(folder: Path, network: NetworkArgs) -> None:
    from flowless.export.build_engine import build
    from flowless.pipeline.synthetic.moving_shapes import ShapesOptions, generate

    generate(folder / "shapes", options=ShapesOptions(train_videos=48, val_videos=48))
    _work_of("training", folder)()
    (folder / f"run-{os.getpid()}").rename(folder / "run")
    network.export(folder)
    build(folder / "bundle", target="openvino")
    build(folder / "bundle", target="onnxruntime")


def _work_of(kind: str, folder: Path) -> Callable[[], object]:
    """Return what does one piece of a kind's work."""
    if kind == "busy":
        return lambda: sum(range(1_000_000))
    if kind in {"training", "evaluation"}:
        from flowless.train import find_recipe, load_checkpoint
        from flowless.train.evaluation.evaluate import evaluate
        from flowless.train.loop.fit import fit

        train, val = (DatasetIndex.load(folder / "shapes" / f"{part}.index.jsonl") for part in ("train", "val"))
        if kind == "training":
            recipe = find_recipe("pan-lite-r18/moving-shapes", epochs=1)
            return lambda: fit(recipe, index=train, out=folder / f"run-{os.getpid()}", overwrite=True)
        checkpoint = load_checkpoint(folder / "run" / "last.safetensors")
        return lambda: evaluate(checkpoint, val)
    clip = np.zeros((1, *read_manifest(folder / "bundle").spec.shape), np.uint8)
    eager = torch_runners(folder / "model.safetensors", compiled=False)[0].run if kind == "pytorch" else None
    run = eager or flowless.load(folder / "bundle", kind, "fp32")
    return lambda: run(clip)

"""The command lines of `flowless demo` and `flowless bench`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import tyro

from flowless.console import emit, log
from flowless.errors import FlowlessError

#: Benchmark -> the function that runs it (module:function, called with the remaining arguments), and what it measures.
BENCHMARKS: dict[str, tuple[str, str]] = {
    "throughput": ("flowless.bench.speed.throughput:main", "decode, preprocess, engine and end to end, every target beside PyTorch"),
    "peers": ("flowless.bench.speed.peers:main", "beside the official PAN code, from your own clone of it"),
    "export": ("flowless.bench.speed.export_time:main", "minutes from a checkpoint to a verified INT8 bundle, stage by stage"),
    "systems": (
        "flowless.bench.systems.comparison:systems",
        "the four systems and their baselines trained alike on videos and their reversals: accuracy beside cost",
    ),
    "real": (
        "flowless.bench.systems.comparison:real",
        "the same on real clips of people: tested on others, reversed and shuffled, opposite actions",
    ),
    "timeline": (
        "flowless.bench.timeline.timeline_bench:main",
        "actions in long videos with known borders: mean average precision beside baselines, and speed",
    ),
    "shared-cores": (
        "flowless.bench.speed.shared_cores:main",
        "what training, evaluation and each engine lose beside other programs",
    ),
    "processes": ("flowless.bench.speed.processes:main", "many videos: a process per core beside one engine with all threads"),
    "motion": ("flowless.bench.motion.motion:main", "motion cues beside optical flow on the same frames: speed, operations, pictures"),
    "decode": ("flowless.bench.speed.decode:main", "whether every frame is the requested one, and how fast, beside other readers"),
    "memory": ("flowless.bench.speed.memory:main", "memory of a batch of 4K clips, and over ten thousand clips"),
    "embed": ("flowless.bench.speed.embed:main", "the C++ library beside Python, Pillow and OpenVINO alone: a clip, a frame, memory"),
    "live": (
        "flowless.bench.speed.live:main",
        "streams that are watched together: latency, dropped frames, streams per core, beside a queue and whole clips",
    ),
    "gpu": ("flowless.bench.gpu.command:main", "everything that needs a GPU: kernels, decoder, engines; says what is not here"),
}


def demo(args: Sequence[str]) -> None:
    """`flowless demo`."""

    def run(*, out: Path = Path("runs/demo"), seed: int = 0, quick: bool = False, json: bool = False) -> None:
        """Walk the whole way on generated videos: generate, train, evaluate, export, build, predict, report.

        Needs no download, no GPU, and 15 to 20 minutes on two cores. Writes OUT/report.html, OUT/summary.json, and
        everything made on the way: videos, checkpoints, bundles.

        Args:
            out: folder for everything that is made; an older demo there is replaced.
            seed: seed of the videos and of the training.
            quick: a tenth of the videos, two epochs and networks of one block a stage: shows the path, learns little.
            json: print the summary as one JSON document.
        """
        from flowless.bench.demo.run_demo import run_demo, summary_table

        summary = run_demo(out, seed=seed, quick=quick)
        emit(summary, summary_table(summary), as_json=json)

    tyro.cli(run, prog="flowless demo", args=args)


def bench(args: Sequence[str]) -> int | None:
    """`flowless bench NAME ...`: hand the remaining arguments to the benchmark."""
    if not args or args[0] in {"-h", "--help"}:
        width = max(map(len, BENCHMARKS))
        print("usage: flowless bench NAME [...]\n")
        print("\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in BENCHMARKS.items()))
        print("\nEach writes JSON with the environment in it. `flowless bench NAME --help` teaches one benchmark.")
        return 0 if args else 2
    name, rest = args[0], args[1:]
    if name not in BENCHMARKS:
        log.print(f"flowless bench: no benchmark {name!r}. There are: {', '.join(BENCHMARKS)}.", style="red", markup=False, soft_wrap=True)
        return 2
    module, _, function = BENCHMARKS[name][0].partition(":")
    if importlib.util.find_spec(module.rpartition(".")[0]) is None:
        raise FlowlessError(
            f"flowless bench {name}: the installed package has no benchmarks. Run it from a checkout of flowless's repository: make "
            f"demo sets it up, then .venv/bin/flowless bench {name}."
        )
    return getattr(importlib.import_module(module), function)(rest)

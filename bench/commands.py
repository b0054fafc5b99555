"""The command-line face of the benches: `doctor`, `demo`, `bench`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import tyro

from flowless.console import emit, log

#: Benchmark -> the function that runs it (module:function, called with the remaining words), and what it measures.
BENCHMARKS: dict[str, tuple[str, str]] = {
    "throughput": ("flowless.bench.speed.throughput:main", "decode, preprocess, engine and end to end, every target beside PyTorch"),
    "peers": ("flowless.bench.speed.peers:main", "beside the official PAN code, from your own clone of it"),
    "export": ("flowless.bench.speed.export_time:main", "minutes from a checkpoint to a verified INT8 bundle, stage by stage"),
    "systems": ("flowless.bench.systems.systems:main", "the four systems and their baselines trained alike: accuracy beside cost"),
    "real": (
        "flowless.bench.systems.real:main",
        "the same on real clips of people: tested on others, reversed and shuffled, opposite actions",
    ),
    "reversal": ("flowless.bench.systems.reversal:main", "does a model read time? Real videos, forwards and backwards"),
    "shared-cores": (
        "flowless.bench.speed.shared_cores:main",
        "what training, evaluation and each engine lose beside other programs",
    ),
    "motion": ("flowless.bench.motion.motion:main", "motion cues beside optical flow on the same frames: speed, operations, pictures"),
    "decode": ("flowless.bench.speed.decode:main", "whether every frame is the requested one, and how fast, beside other readers"),
    "memory": ("flowless.bench.speed.memory:main", "memory of a batch of 4K clips, and over ten thousand clips"),
    "gpu": ("flowless.bench.gpu.command:main", "everything that needs a GPU: kernels, decoder, engines; says what is not here"),
}


def doctor(words: Sequence[str]) -> None:
    """`flowless doctor`."""

    def run(*, json: bool = False) -> None:
        """Tell what this machine can decode, train on, build and run, and what to install for the rest.

        Args:
            json: print one JSON document instead of the table.
        """
        from flowless.doctor import document, examine, table

        findings = examine()
        emit(document(findings), table(findings), as_json=json)

    tyro.cli(run, prog="flowless doctor", args=words)


def demo(words: Sequence[str]) -> None:
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

    tyro.cli(run, prog="flowless demo", args=words)


def bench(words: Sequence[str]) -> int | None:
    """`flowless bench NAME ...`: hand the remaining words to the benchmark."""
    if not words or words[0] in {"-h", "--help"}:
        width = max(map(len, BENCHMARKS))
        print("usage: flowless bench NAME [...]\n")
        print("\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in BENCHMARKS.items()))
        print("\nEach writes JSON with the environment in it. `flowless bench NAME --help` teaches one benchmark.")
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name not in BENCHMARKS:
        log.print(f"flowless bench: no benchmark {name!r}. There are: {', '.join(BENCHMARKS)}.", style="red", markup=False, soft_wrap=True)
        return 2
    module, _, function = BENCHMARKS[name][0].partition(":")
    return getattr(importlib.import_module(module), function)(rest)

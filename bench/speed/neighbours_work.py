"""What `flowless bench neighbours` measures: a process that does one piece of work again and again between two commands.

The commands are lines on its standard input, `go` and `stop`. It ends where that input ends, so it does not outlive the benchmark. On its
standard output it says `{"ready": true}`, then for each piece when it began and ended (the system's monotonic clock) and the processor
time of all its threads, and `{"stopped": true}`.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

#: A recipe of `flowless train`, whose videos are 48 x 48 pixels.
RECIPE = "pan-lite-r18/moving-shapes"
ENGINES = ("openvino", "onnxruntime")
#: What is measured, and what one piece of it is.
KINDS = {
    "training": f"an epoch of {RECIPE}, as `flowless train` does it, checkpoints included",
    "evaluation": "the validation videos with that checkpoint, as `flowless evaluate` does it",
    "pytorch": "a clip through the network, PyTorch eager in fp32",
    **{target: f"a clip through the network, flowless.load's {target} engine in fp32" for target in ENGINES},
}


def make_inputs(folder: Path, *, kinds: Collection[str], model: str, size: int, videos: int, config: Mapping[str, Any]) -> None:
    """Write what the workers of `kinds` read: `shapes/` and `run/last.safetensors`, `bundle/` with `model.safetensors` beside it."""
    from flowless.bench.lib.runners import bundle_of
    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.pipeline.synthetic.moving_shapes import ShapesOptions, generate

    if not {"training", "evaluation"}.isdisjoint(kinds):
        generate(folder / "shapes", options=ShapesOptions(train_videos=videos, val_videos=videos))
    if "evaluation" in kinds:
        _training(folder, out=folder / "run")()
    if not {"pytorch", *ENGINES}.isdisjoint(kinds):
        spec = ClipSpec(height=size, width=size, short_side=size * 8 // 7)
        bundle_of(model, spec=spec, folder=folder, targets=[target for target in ENGINES if target in kinds], classes=174, **config)


def main(words: Sequence[str]) -> int:
    """Do the work named by `words`: a kind and the folder of its inputs."""
    from flowless.cli import run_command

    kind, folder = words[0], Path(words[1])
    # Everything else that this process prints goes to its log.
    said = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if kind == "busy":
        return _spin(said)
    return run_command(lambda: _serve(work_of(kind, folder), said))


def work_of(kind: str, folder: Path) -> Callable[[], object]:
    """Return what does one piece of a kind's work."""
    if kind == "training":
        return _training(folder, out=folder / f"run-{os.getpid()}")
    if kind == "evaluation":
        return _evaluation(folder)
    return _engine(kind, folder)


def _training(folder: Path, *, out: Path) -> Callable[[], object]:
    from flowless.pipeline.dataset.index import DatasetIndex
    from flowless.train.loop.fit import fit
    from flowless.train.recipes import find_recipe

    index = DatasetIndex.load(folder / "shapes" / "train.index.jsonl")
    recipe = find_recipe(RECIPE, epochs=1)
    return lambda: fit(recipe, index=index, out=out, overwrite=True)


def _evaluation(folder: Path) -> Callable[[], object]:
    from flowless.pipeline.dataset.index import DatasetIndex
    from flowless.train.checkpoints import load_checkpoint
    from flowless.train.evaluation.evaluate import evaluate

    index = DatasetIndex.load(folder / "shapes" / "val.index.jsonl")
    checkpoint = load_checkpoint(folder / "run" / "last.safetensors")
    return lambda: evaluate(checkpoint, index)


def _engine(kind: str, folder: Path) -> Callable[[], object]:
    import numpy as np

    import flowless
    from flowless.engines.bundle.manifest import read_manifest

    spec = read_manifest(folder / "bundle").spec
    clip = np.random.default_rng(0).integers(0, 256, (1, *spec.shape), dtype=np.uint8)
    if kind == "pytorch":
        from flowless.bench.lib.networks import Eager
        from flowless.train.checkpoints import load_checkpoint

        network = Eager(load_checkpoint(folder / "model.safetensors").model)
        return lambda: network(clip)
    engine = flowless.load(folder / "bundle", target=kind, precision="fp32")
    return lambda: engine(clip)


def _serve(work: Callable[[], object], said: IO[str]) -> int:
    def say(**values: object) -> None:
        print(json.dumps(values), file=said, flush=True)

    work()  # what is made at the first call is no part of the measurement
    say(ready=True)
    # By file descriptor: a line that Python has read ahead would not show in select.
    while (word := _line()) == "go":
        while not select.select([0], [], [], 0)[0]:
            start, spent = time.monotonic(), time.process_time()
            work()
            say(start=start, end=time.monotonic(), cpu_s=time.process_time() - spent)
        if (word := _line()) != "stop":
            break
        say(stopped=True)
    return 0 if word == "" else 1


def _line() -> str:
    """Return the next line of standard input, "" at its end."""
    word = b""
    while (byte := os.read(0, 1)) not in {b"", b"\n"}:
        word += byte
    return word.decode("ascii")


def _spin(said: IO[str]) -> int:
    """Keep one core busy until the process that began this one ends it, or is no more."""
    parent = os.getppid()
    print(json.dumps({"ready": True}), file=said, flush=True)
    while os.getppid() == parent:
        for _ in range(1_000_000):
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`flowless demo`: the whole way on generated videos, measured stage by stage, and reported on one page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowless.bench.demo.demo_engines import engine_rows, grouped, watch_videos
from flowless.bench.demo.report import Evidence, write_report
from flowless.console import log
from flowless.engines.bundle.manifest import read_manifest
from flowless.files import write_json
from flowless.machine import quick_precision
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.synthetic.moving_shapes import PAIRS, ShapesOptions, generate

if TYPE_CHECKING:
    from rich.table import Table

    from flowless.train.loop.fit import FitResult

#: Name in the summary -> the recipe that it is trained by.
MODELS = {"pan-lite": "pan-lite-r18/moving-shapes", "tsn": "tsn-r18/moving-shapes"}
#: Validation videos that each engine's top-1 is judged on before it is kept; those that are kept are evaluated on all.
GATE_VIDEOS = 240
#: Points of top-1, of 100, that a lower precision may lose here, and never fewer than so many videos: of 240 videos, half a point, the
#: product's own limit, is one, which luck decides.
MAX_DROP, LEAST_VIDEOS = 2.0, 3


class Stages:
    """Times the stages and says which one is running."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run one stage."""
        log.print(f"[bold]{len(self.seconds) + 1}. {name}[/]")
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def run_demo(out: Path, *, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Generate, train, evaluate, export, build, predict and report.

    Args:
        out: folder for everything that is made; what an older demo left there is replaced.
        seed: seed of the videos and of the training.
        quick: few videos, two epochs, networks of one block a stage.

    Returns:
        The content of `OUT/summary.json`: `accuracy` by model, `engines`, `seconds` by stage.
    """
    from flowless.bench.demo.demo_insight import look_inside
    from flowless.train.evaluation.evaluate import evaluate
    from flowless.train.evaluation.metrics import confusion_matrix

    stages = Stages()
    bundle = out / "bundle"
    with stages("generate videos"):
        train, val = _videos(out / "videos", seed=seed, quick=quick)
    runs: dict[str, FitResult] = {}
    for name in MODELS:
        with stages(f"train {name}"):
            runs[name] = _train(name, out / name, indexes=(train, val), seed=seed, quick=quick)
    with stages("evaluate checkpoints"):
        evaluations = {name: evaluate(run.best, val) for name, run in runs.items()}
    with stages("export"):
        _export(runs["pan-lite"].best, bundle, val)
    with stages("build engines"):
        trials, left_out = _build(bundle, out / "videos" / "train.index.jsonl", _gate_index(val, out / "gate.index.jsonl"))
    with stages("evaluate engines"):
        engines = engine_rows(bundle, val, trials=trials, left_out=left_out)
    with stages("predict from files"):
        predictions = watch_videos(bundle, val)
    summary: dict[str, Any] = {
        "accuracy": {name: round(result.top1, 4) for name, result in evaluations.items()},
        "engines": engines,
        "seconds": stages.seconds,
    }
    labels = tuple(label for pair in PAIRS for label in pair)
    order = [val.labels.index(label) for label in labels]
    with stages("report"):
        evidence = Evidence(
            labels=labels,
            counts={"train": len(train.videos), "val": len(val.videos)},
            histories={name: run.rows for name, run in runs.items()},
            confusions={name: confusion_matrix(result.scores, result.labels)[np.ix_(order, order)] for name, result in evaluations.items()},
            **look_inside(runs["pan-lite"].best, val),
            predictions=predictions,
            trials=trials,
            calibration=read_manifest(bundle).calibration,
            judged_on=(judged := min(GATE_VIDEOS, len(val.videos))),
            max_drop=allowed_drop(judged),
            seed=seed,
            commands=_commands(out),
        )
        write_report(out / "report.html", summary, evidence)
    write_json(out / "summary.json", summary)
    log.print(f"[bold green]Done.[/] Open {out / 'report.html'}; all figures are in {out / 'summary.json'}.")
    return summary


def _videos(folder: Path, *, seed: int, quick: bool) -> tuple[DatasetIndex, DatasetIndex]:
    options = ShapesOptions(seed=seed)
    if quick:
        options = replace(options, train_videos=options.train_videos // 10 // 2 * 2, val_videos=48)
    generate(folder, options=options)
    return DatasetIndex.load(folder / "train.index.jsonl"), DatasetIndex.load(folder / "val.index.jsonl")


def _train(name: str, folder: Path, *, indexes: tuple[DatasetIndex, DatasetIndex], seed: int, quick: bool) -> FitResult:
    from flowless.train.loop.fit import fit
    from flowless.train.recipes import find_recipe

    recipe = find_recipe(MODELS[name], seed=seed, precision=quick_precision(), **({"epochs": 2, "blocks": 1} if quick else {}))
    return fit(recipe, index=indexes[0], val_index=indexes[1], out=folder, overwrite=True)


def _export(checkpoint: Path, bundle: Path, val: DatasetIndex) -> None:
    from flowless.export.bundle_writer import export_bundle

    one_each = {video.label: val.path_of(video) for video in val.videos}
    export_bundle(checkpoint, bundle, videos=list(one_each.values())[:4])


def allowed_drop(videos: int) -> float:
    """Return the points of top-1 that a lower precision may lose on so many validation videos."""
    return max(MAX_DROP, round(100 * LEAST_VIDEOS / max(1, videos), 2))


def _gate_index(val: DatasetIndex, path: Path) -> Path:
    """Write the index of the validation videos that engines are judged on, as many of each class."""
    from flowless.export.precision.calibration import chosen

    replace(val, videos=tuple(chosen(val, seed=0)[:GATE_VIDEOS])).save(path)
    return path


def _build(bundle: Path, train: Path, gate: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Try every precision of every target that this machine can build; return the trials, and why the other targets were left out."""
    from flowless.export.auto_precision import try_all
    from flowless.export.precision.calibration import Calibration
    from flowless.export.targets.builders import buildable
    from flowless.export.verify.checks import Checks

    targets, left_out = buildable()
    checks = Checks(data=gate, max_drop=allowed_drop(len(DatasetIndex.load(gate).videos)))
    calibration = Calibration(index=train, spec=read_manifest(bundle).spec)
    return try_all(bundle, targets, checks=checks, calibration=calibration), left_out


def summary_table(summary: dict[str, Any]) -> Table:
    """Return the summary as a table for people."""
    from rich.markup import escape
    from rich.table import Table

    accuracy = ", ".join(f"{name} {100 * top1:.1f} %" for name, top1 in summary["accuracy"].items())
    columns = ("target", "precision", "status", "top-1", "largest difference", "latency, ms", "clips/s", "MB")
    table = Table(*columns, title=f"validation top-1: {accuracy}; {sum(summary['seconds'].values()):.0f} s")
    forms = {"top1": "%.3f", "max_abs_diff": "%.1e", "latency_ms_p50": "%.2f", "clips_per_s": "%.0f", "megabytes": "%.2f"}
    left_out = []
    for row in grouped(summary["engines"]):
        status, _, reason = row["status"].partition(": ")
        left_out += [f"{row['target']} {row['precision']} {status}: {reason}"] if reason else []
        figures = ["" if row[key] is None else form % row[key] for key, form in forms.items()]
        table.add_row(row["target"], row["precision"], status, *figures)
    table.caption = escape("\n".join(left_out))
    return table


def _commands(out: Path) -> str:
    return "\n".join(
        [
            f"flowless predict {out / 'bundle'} {out / 'videos'}/val/left/*.mp4",
            f"flowless evaluate {out / 'pan-lite' / 'best.safetensors'} --data {out / 'videos' / 'val.index.jsonl'}",
            f"flowless evaluate {out / 'bundle'} --data {out / 'videos' / 'val.index.jsonl'}",
            f"flowless build {out / 'bundle'} --target all --precision auto --calibrate {out / 'videos' / 'train.index.jsonl'}"
            f" --data {out / 'videos' / 'val.index.jsonl'}",
            "flowless scan MY_VIDEOS --format folder --out my.index.jsonl     # your own: a folder per class",
            "flowless train pan-lite-r50/custom --data my.index.jsonl --out runs/mine",
        ]
    )

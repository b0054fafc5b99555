"""`flowless demo`: the whole way on generated videos, measured stage by stage, and reported on one page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowless import html_pages
from flowless.bench.demo.demo_engines import engine_rows, grouped, predict_videos
from flowless.bench.demo.report import Evidence, render
from flowless.console import log
from flowless.engines.bundle.manifest import read_manifest
from flowless.files import write_json
from flowless.machine import quick_precision
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.synthetic.moving_shapes import PAIRS, ShapesOptions, generate

if TYPE_CHECKING:
    from rich.table import Table

    from flowless.train.loop.fit import FitResult

#: Name in the summary -> its recipe.
MODELS = {"pan-lite": "pan-lite-r18/moving-shapes", "tsn": "tsn-r18/moving-shapes"}
#: Validation videos that each engine's top-1 is judged on before it is kept; those that are kept are evaluated on all.
GATE_VIDEOS = 240
#: Points of top-1, of 100, that a lower precision may lose here, and at least so many videos: the default of half a point is one video of
#: 240, which is chance.
MAX_DROP, LEAST_VIDEOS = 2.0, 3


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a stage and record how long it took."""
    log.print(f"[bold]{len(seconds) + 1}. {name}[/]")
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


def run_demo(out: Path, *, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Generate, train, evaluate, export, build, predict and report into the folder `out`; an older demo there is replaced.

    Returns:
        The content of `OUT/summary.json`: `accuracy` by model, `engines`, `seconds` by stage.
    """
    from flowless.export.export_bundle import export_bundle
    from flowless.train.evaluation.evaluate import evaluate
    from flowless.train.evaluation.metrics import confusion_matrix

    seconds: dict[str, float] = {}
    stages, bundle = partial(_stage, seconds=seconds), out / "bundle"
    with stages("generate videos"):
        train, val = _videos(out / "videos", seed=seed, quick=quick)
    runs: dict[str, FitResult] = {}
    for name in MODELS:
        with stages(f"train {name}"):
            runs[name] = _train(name, out / name, indexes=(train, val), seed=seed, quick=quick)
    with stages("evaluate checkpoints"):
        evaluations = {name: evaluate(run.best, val) for name, run in runs.items()}
    with stages("export"):
        one_each = {video.label: val.path_of(video) for video in val.videos}
        export_bundle(runs["pan-lite"].best, bundle, videos=list(one_each.values())[:4])
    with stages("build engines"):
        trials, left_out = _build(bundle, out / "videos" / "train.index.jsonl", val, out / "gate.index.jsonl")
    with stages("evaluate engines"):
        engines = engine_rows(bundle, val, trials=trials, left_out=left_out)
    with stages("predict from files"):
        predictions = predict_videos(bundle, val)
    summary: dict[str, Any] = {
        "accuracy": {name: round(result.top1, 4) for name, result in evaluations.items()},
        "engines": engines,
        "seconds": seconds,
    }
    labels = tuple(label for pair in PAIRS for label in pair)
    order = [val.labels.index(label) for label in labels]
    with stages("report"):
        evidence = Evidence(
            labels=labels,
            counts={"train": len(train.videos), "val": len(val.videos)},
            histories={name: run.rows for name, run in runs.items()},
            confusions={name: confusion_matrix(result.scores, result.labels)[np.ix_(order, order)] for name, result in evaluations.items()},
            **_motion_evidence(runs["pan-lite"].best, val),
            predictions=predictions,
            trials=trials,
            calibration=read_manifest(bundle).calibration,
            judged_on=(judged := min(GATE_VIDEOS, len(val.videos))),
            max_drop=allowed_drop(judged),
            seed=seed,
            commands=_commands(out),
        )
        html_pages.write_text(out / "report.html", render(summary, evidence))
    write_json(out / "summary.json", summary)
    log.print(f"[bold green]Done.[/] Open {out / 'report.html'}; all figures are in {out / 'summary.json'}.")
    return summary


def _videos(folder: Path, *, seed: int, quick: bool) -> tuple[DatasetIndex, DatasetIndex]:
    generate(folder, options=ShapesOptions(seed=seed, train_videos=240, val_videos=48) if quick else ShapesOptions(seed=seed))
    return DatasetIndex.load(folder / "train.index.jsonl"), DatasetIndex.load(folder / "val.index.jsonl")


def _train(name: str, folder: Path, *, indexes: tuple[DatasetIndex, DatasetIndex], seed: int, quick: bool) -> FitResult:
    from flowless.train.loop.fit import fit
    from flowless.train.recipes import find_recipe

    recipe = find_recipe(MODELS[name], seed=seed, precision=quick_precision(), **({"epochs": 2, "blocks": 1} if quick else {}))
    return fit(recipe, index=indexes[0], val_index=indexes[1], out=folder, overwrite=True)


def allowed_drop(videos: int) -> float:
    """Return the points of top-1 that a lower precision may lose on so many validation videos."""
    return max(MAX_DROP, round(100 * LEAST_VIDEOS / max(1, videos), 2))


def _build(bundle: Path, train: Path, val: DatasetIndex, gate: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Try every precision of every target that this machine can build; return the trials, and why the other targets were left out."""
    from flowless.export.auto_precision import try_all
    from flowless.export.build_engine import buildable
    from flowless.export.precision.calibration import Calibration, calibration_order
    from flowless.export.verify.checks import Checks

    videos = tuple(calibration_order(val, seed=0)[:GATE_VIDEOS])  # as many of each class
    replace(val, videos=videos).save(gate)
    targets, left_out = buildable()
    checks = Checks(data=gate, max_drop=allowed_drop(len(videos)))
    calibration = Calibration(index=train, spec=read_manifest(bundle).spec)
    return try_all(bundle, targets, checks=checks, calibration=calibration), left_out


def _motion_evidence(checkpoint: Path, val: DatasetIndex, *, videos_per_label: int = 8) -> dict[str, Any]:
    """Return PAN-Lite's PA maps of one video and its mean VAP weights of each label: `strips`, `vap_weights`, `timescales` of Evidence."""
    import torch

    from flowless.export.explain.cues import timescale_names
    from flowless.train.checkpoints import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    model: Any = loaded.model
    strips, weights = {}, {}
    for number, label in enumerate(val.labels):
        videos = [val.path_of(video) for video in val.videos if video.label == number][:videos_per_label]
        clips = torch.from_numpy(np.concatenate([load_clip(video, loaded.spec)[:1] for video in videos]))
        with torch.inference_mode():
            strips[label] = clips[0, :, 0].numpy(), model.motion(clips[:1])[0, :, 0].numpy()
            features = model.features(model.normalise(model.as_frames(clips)))
            weights[label] = model.head.timescale_weights(features).mean(0).numpy()
    return {"strips": strips, "vap_weights": weights, "timescales": timescale_names(loaded.spec.segments)}


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

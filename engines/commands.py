"""`flowless predict`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from flowless.console import emit, log


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Say what happens in each video.

    The videos are decoded while the engine runs. A video that cannot be read is named with the reason, the others go on, and
    the exit code is 1 in the end. A score is a probability: the softmax of the network's scores, averaged over the views.
    """

    bundle: tyro.conf.Positional[Path]
    """The bundle's folder, which flowless export and build wrote."""
    videos: tyro.conf.Positional[tuple[Path, ...]]
    """Video files."""
    target: Literal["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"] | None = None
    """Library that runs the engine; by default the fastest that this machine can run."""
    precision: str | None = None
    """Precision of the engine, such as fp32; by default what the bundle has."""
    hint: Literal["f32", "bf16", "f16"] | None = None
    """openvino: compute an fp32 engine in this arithmetic."""
    top: int = 5
    """Classes to name for each video."""
    threads: int | None = None
    """CPU threads of the engine; by default the library chooses."""
    json: bool = False
    """Print one JSON document instead of a table."""


def predict(words: Sequence[str]) -> int:
    """Run `flowless predict`."""
    ask = tyro.cli(Predict, args=list(words), prog="flowless predict", description=inspect.getdoc(Predict))
    from flowless.engines.loading import load
    from flowless.errors import FlowlessError

    if not ask.videos:
        raise FlowlessError(f"{ask.bundle}: no video was named. Use: flowless predict BUNDLE VIDEO...")
    if ask.top < 1:
        raise FlowlessError(f"--top is {ask.top}; it must be at least 1.")
    engine = load(ask.bundle, ask.target, ask.precision, threads=ask.threads, hint=ask.hint)
    log.print(engine.why, markup=False, soft_wrap=True)
    predictions = []
    for prediction in engine.predict_many(ask.videos, ask.top):
        predictions.append(prediction)
        if prediction.error:
            log.print(f"flowless: {prediction.error}", style="red", markup=False, soft_wrap=True)
    emit([item.to_dict() for item in predictions], _table(predictions), as_json=ask.json)
    return 1 if any(item.error for item in predictions) else 0


def _table(predictions: Sequence):
    from rich.markup import escape
    from rich.table import Table

    table = Table("video", "what happens", "score", "decode + preprocess + engine, ms")
    for item in predictions:
        if item.error:
            table.add_row(escape(item.video), "[red]cannot be read[/red]", "", "")
            continue
        times = " + ".join(f"{1000 * item.seconds[part]:.0f}" for part in ("decode", "preprocess", "engine"))
        names = "\n".join(escape(answer.label) for answer in item.top)
        table.add_row(escape(item.video), names, "\n".join(f"{answer.score:.3f}" for answer in item.top), times)
    return table

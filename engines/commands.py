"""`flowless predict`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from flowless.console import emit, log

if TYPE_CHECKING:
    from flowless.engines.engine import Engine, Prediction


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Say what happens in each video.

    The videos are decoded while the engine runs. A video that cannot be read is named with the reason, the others go on, and
    the exit code is 1 in the end. A score is a probability: the softmax of the network's scores, averaged over the views before it or
    behind it, as the bundle says.
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
    online: bool = False
    """Show each video frame by frame, as a camera would: an answer to every frame, from it and the frames before it, and the
    average of all answers. For models that see one frame a segment (stm, tsm, tsn)."""
    every: int = 1
    """online: show every so manieth frame."""
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
    if ask.top < 1 or ask.every < 1:
        raise FlowlessError(f"--top is {ask.top}, --every {ask.every}; both must be at least 1.")
    if ask.every > 1 and not ask.online:
        raise FlowlessError(f"--every {ask.every} is for --online; without it the bundle's sampling chooses the frames.")
    engine = load(ask.bundle, ask.target, ask.precision, threads=ask.threads, hint=ask.hint)
    log.print(engine.why, markup=False, soft_wrap=True)
    predictions = []
    for prediction in _online(engine, ask) if ask.online else engine.predict_many(ask.videos, ask.top):
        predictions.append(prediction)
        if prediction.error:
            log.print(f"flowless: {prediction.error}", style="red", markup=False, soft_wrap=True)
        elif prediction.warning:
            log.print(f"flowless: {prediction.video}: {prediction.warning}.", style="yellow", markup=False, soft_wrap=True)
    tables = [_table(predictions), *([_moments_table(predictions)] if ask.online else [])]
    emit([item.to_dict() for item in predictions], *tables, as_json=ask.json)
    return 1 if any(item.error for item in predictions) else 0


def _online(engine: Engine, ask: Predict) -> Iterator[Prediction]:
    from flowless.engines.streaming.online import Online, OnlinePrediction, predict_online
    from flowless.errors import FlowlessError

    Online(engine)  # an engine that cannot be shown single frames is no fault of a video
    for path in ask.videos:
        try:
            yield predict_online(engine, path, top=ask.top, every=ask.every)
        except FlowlessError as error:
            yield OnlinePrediction(video=str(path), error=str(error))


def _moments_table(predictions: Sequence[Prediction]):
    """When the answer changed."""
    from rich.markup import escape
    from rich.table import Table

    from flowless.engines.streaming.online import OnlinePrediction

    table = Table("video", "from frame", "now", "score", "so far", "ms a frame")
    for item in predictions:
        last = None
        for moment in item.moments if isinstance(item, OnlinePrediction) else ():
            answer = (moment.now.label, moment.so_far.label)
            if answer != last:
                shown = (escape(moment.now.label), f"{moment.now.score:.3f}", escape(moment.so_far.label), f"{1000 * moment.seconds:.1f}")
                table.add_row("" if last else escape(item.video), str(moment.frame), *shown)
            last = answer
    return table


def _table(predictions: Sequence[Prediction]):
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

"""The command line of `flowless predict`."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from flowless.console import emit, log
from flowless.engines.decoded_scores import Decode
from flowless.engines.targets import Target

if TYPE_CHECKING:
    from flowless.engines.engine import Engine, Prediction


@dataclass(frozen=True, kw_only=True)
class PredictArgs:
    """Recognise the action in each video.

    The next videos are decoded while the engine runs. A video that cannot be read is reported with the reason, the others are still
    predicted, and the exit code is 1. A score is a probability: the softmax of the network's scores, averaged over the views before or
    after the softmax, as the bundle says.
    """

    bundle: tyro.conf.Positional[Path]
    """The bundle's folder, which flowless export and build wrote."""
    videos: tyro.conf.Positional[tuple[Path, ...]]
    """Video files."""
    target: Target | None = None
    """Library that runs the engine; by default the fastest that this machine can run."""
    precision: str | None = None
    """Precision of the engine, such as fp32; by default what the bundle has."""
    hint: Literal["f32", "bf16", "f16"] | None = None
    """openvino: compute an fp32 engine in this precision."""
    top: int = 5
    """Classes to name for each video."""
    online: bool = False
    """Feed each video frame by frame, as a camera would: a prediction for every frame, from it and the frames before it, and their
    average. For models with one frame per segment (stm, tsm, tsn), and for bundles of flowless export --streaming."""
    every: int = 1
    """online: feed every n-th frame."""
    decode: Decode = "auto"
    """What decodes: cpu is PyAV; gpu is DALI on the GPU, and PyAV what DALI cannot; auto is gpu where the engine runs on an NVIDIA GPU
    and DALI is installed. DALI's scores differ from PyAV's in their last digits."""
    threads: int | None = None
    """CPU threads of the engine; by default the library chooses."""
    json: bool = False
    """Print one JSON document instead of a table."""


def predict(arguments: Sequence[str]) -> int:
    """Run `flowless predict`."""
    args = tyro.cli(PredictArgs, args=list(arguments), prog="flowless predict", description=inspect.getdoc(PredictArgs))
    from flowless.engines.loading import load
    from flowless.errors import FlowlessError

    if not args.videos:
        raise FlowlessError(f"{args.bundle}: no video was named. Use: flowless predict BUNDLE VIDEO...")
    if args.top < 1 or args.every < 1:
        raise FlowlessError(f"--top is {args.top}, --every {args.every}; both must be at least 1.")
    if args.every > 1 and not args.online:
        raise FlowlessError(f"--every {args.every} is for --online; without it the bundle's sampling chooses the frames.")
    if args.online and args.decode == "gpu":
        raise FlowlessError("--decode gpu and --online: PyAV decodes a video that is fed frame by frame. Leave out one of them.")
    engine = load(args.bundle, args.target, args.precision, threads=args.threads, hint=args.hint)
    log.print(engine.why, markup=False, soft_wrap=True)
    predictions = []
    for prediction in _online(engine, args) if args.online else engine.predict_many(args.videos, args.top, decode=args.decode):
        predictions.append(prediction)
        if prediction.error:
            log.print(f"flowless: {prediction.error}", style="red", markup=False, soft_wrap=True)
        elif prediction.warning:
            log.print(f"flowless: {prediction.video}: {prediction.warning}.", style="yellow", markup=False, soft_wrap=True)
    if line := _decoders(predictions):
        log.print(line, markup=False, soft_wrap=True)
    tables = [_table(predictions), *([_moments_table(predictions)] if args.online else [])]
    emit([item.to_dict() for item in predictions], *tables, as_json=args.json)
    return 1 if any(item.error for item in predictions) else 0


def _decoders(predictions: Sequence[Prediction]) -> str:
    """Return in one line how many videos DALI and PyAV decoded, and why PyAV did; empty where DALI was to decode none."""
    count = Counter(item.decoder for item in predictions if item.error is None)
    reasons = Counter(item.fallback for item in predictions if item.fallback)
    if not count["dali"] and not reasons:
        return ""
    why = "; ".join(f"{reason} ({many})" for reason, many in reasons.most_common())
    return f"flowless: DALI decoded {count['dali']} videos, PyAV {count['pyav']}" + (f": {why}." if why else ".")


def _online(engine: Engine, args: PredictArgs) -> Iterator[Prediction]:
    from flowless.engines.streaming.online import Online, OnlinePrediction, predict_online
    from flowless.errors import FlowlessError

    Online(engine)  # raises here, once, for an engine that takes several frames per segment
    for path in args.videos:
        try:
            yield predict_online(engine, path, top=args.top, every=args.every)
        except FlowlessError as error:
            yield OnlinePrediction(video=str(path), error=str(error))


def _moments_table(predictions: Sequence[Prediction]):
    """Return a table of the frames at which the prediction changed."""
    from rich.markup import escape
    from rich.table import Table

    from flowless.engines.streaming.online import OnlinePrediction

    table = Table("video", "from frame", "now", "score", "average", "ms a frame")
    for item in predictions:
        last = None
        for moment in item.moments if isinstance(item, OnlinePrediction) else ():
            labels = (moment.now.label, moment.so_far.label)
            if labels != last:
                shown = (escape(moment.now.label), f"{moment.now.score:.3f}", escape(moment.so_far.label), f"{1000 * moment.seconds:.1f}")
                table.add_row("" if last else escape(item.video), str(moment.frame), *shown)
            last = labels
    return table


def _table(predictions: Sequence[Prediction]):
    from rich.markup import escape
    from rich.table import Table

    table = Table("video", "action", "score", "decode + preprocess + engine, ms")
    for item in predictions:
        if item.error:
            table.add_row(escape(item.video), "[red]cannot be read[/red]", "", "")
            continue
        times = " + ".join(f"{1000 * item.seconds[part]:.0f}" for part in ("decode", "preprocess", "engine"))
        names = "\n".join(escape(label.label) for label in item.top)
        table.add_row(escape(item.video), names, "\n".join(f"{label.score:.3f}" for label in item.top), times)
    return table

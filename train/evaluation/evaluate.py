"""Measure the accuracy of a checkpoint or of an engine bundle on an index. PyTorch is imported for checkpoints only."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import flowless
from flowless.engines.decoded_scores import decodes_on_gpu
from flowless.errors import FlowlessError
from flowless.pipeline.clip.protocols import SAME_SIZE
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.evaluation.options import EvaluationOptions
from flowless.train.evaluation.result import Evaluation
from flowless.train.evaluation.score_videos import score_decoded_videos, score_videos
from flowless.train.loop.index_checks import relabel, warn_of_short_videos

if TYPE_CHECKING:
    from flowless.engines import Engine
    from flowless.train.checkpoints import Checkpoint


def evaluate(
    model: str | os.PathLike[str] | Checkpoint | Engine,
    index: str | os.PathLike[str] | DatasetIndex,
    *,
    options: EvaluationOptions | None = None,
) -> Evaluation:
    """Score every video of an index once.

    Args:
        model: A checkpoint file, a bundle folder, a loaded checkpoint or a loaded engine.
        index: Labelled videos, or the file of their index; their labels, by name, must be among the model's.
        options: How to run.

    Raises:
        FlowlessError: The model or the index cannot be used, or no video can be read.
    """
    options = options or EvaluationOptions()
    index = index if isinstance(index, DatasetIndex) else DatasetIndex.load(index)
    if isinstance(model, str | os.PathLike):
        if not Path(model).exists():
            raise FlowlessError(f"{model}: no such checkpoint (a .safetensors file) or bundle (a folder).")
        if Path(model).is_dir():
            model = flowless.load(Path(model), target=options.target, precision=options.precision)
            return _evaluate_engine(model, index, options)
    for name, value in (("target", options.target), ("precision", options.precision)):
        if value is not None:
            raise FlowlessError(
                f"{name} is {value!r}, which chooses an engine of a bundle's folder; this model is no such folder. Leave it out, or "
                "evaluate a bundle (flowless export and flowless build make one)."
            )
    if isinstance(model, str | os.PathLike) or not callable(model):
        from flowless.train.evaluation.evaluate_checkpoint import evaluate_checkpoint

        return evaluate_checkpoint(model, index, options=options)
    return _evaluate_engine(model, index, options)


def _evaluate_engine(engine: Engine, index: DatasetIndex, options: EvaluationOptions) -> Evaluation:
    index = relabel(index, engine.labels)
    name, spec = options.protocol(engine.spec)
    warn_of_short_videos(index, spec, rule=spec.sampling)
    _check_size(engine, name, spec)
    start = time.perf_counter()
    score = score_decoded_videos if decodes_on_gpu(options.decode, engine) else score_videos
    scored = score(engine, index, spec, options=options)
    return Evaluation(
        **vars(scored),
        model=engine.model,
        target=f"{engine.target} {engine.precision}",
        views=name,
        spec=spec,
        names=engine.labels,
        seconds=time.perf_counter() - start,
    )


def _check_size(engine: Engine, name: str, spec: ClipSpec) -> None:
    """Refuse a protocol whose frames have another size than the bundle's graph takes."""
    if spec.shape == engine.spec.shape:
        return
    raise FlowlessError(
        f"views is {name!r}, which takes frames of {spec.height} x {spec.width}; the graph of {engine.manifest.folder} has a fixed "
        f"size, {engine.spec.height} x {engine.spec.width}. Export one of the other size: flowless export CHECKPOINT --out BUNDLE "
        f"--views {name}; or evaluate the checkpoint; or choose views of this size: {', '.join(SAME_SIZE)}."
    )

"""Parameters and multiplications of a network, and the latency of a clip on this machine's processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import flowless
from flowless.console import progress
from flowless.export.build_engine import build
from flowless.export.export_bundle import export_bundle
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.timing import time_interleaved
from flowless.train.checkpoints import Checkpoint
from flowless.train.models import build_model
from flowless.train.models.flops import count
from flowless.train.recipes import Recipe

#: Targets that run on a processor.
TARGETS = ("openvino", "onnxruntime")


def measure_cost(recipes: Mapping[str, Recipe], *, folder: Path, test: DatasetIndex) -> dict[str, dict[str, Any]]:
    """Count each recipe's network, build its fp32 engines in `folder`, and time one clip on all of them, interleaved.

    The networks have their initial weights, which change neither the count nor the time. The first videos of `test` verify the engines,
    and the first one's clip is timed. A cost is `clip` (its shape), `parameters`, `macs` of a clip, `latencies` (target -> median
    milliseconds), and of the fastest target: `target`, `latency_ms`.
    """
    videos, labels = [test.path_of(video) for video in test.videos[:2]], test.labels
    costs: dict[str, dict[str, Any]] = {}
    engines = {}
    with progress() as bar:
        for name, recipe in bar.track(recipes.items(), description="building engines", total=len(recipes)):
            config = {"width": recipe.width, "blocks": recipe.blocks, "dropout": recipe.dropout, **recipe.options.model_options}
            model = build_model(recipe.model, classes=len(labels), spec=recipe.spec, **config).eval()
            costs[name] = {"clip": list(model.spec.shape), **asdict(count(model))}
            made = {"model": model, "name": recipe.model, "spec": recipe.spec, "labels": labels, "recipe": recipe.to_dict()}
            bundle = export_bundle(Checkpoint(**made, versions={}, metrics={}), folder / f"{name}.bundle", videos=videos).folder
            for target in TARGETS:
                build(bundle, target=target)
                engine = flowless.load(bundle, target, "fp32")
                engines[f"{name} {target}"] = partial(engine, load_clip(videos[0], engine.spec)[:1])
    times = time_interleaved(engines, runs=30, warmup=2, warmup_each=1)
    for name, cost in costs.items():
        cost["latencies"] = {target: times[f"{name} {target}"].p50_ms for target in TARGETS}
        cost["latency_ms"], cost["target"] = min((latency, target) for target, latency in cost["latencies"].items())
    return costs

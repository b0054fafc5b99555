"""`flowless fuse`. PyTorch is imported only when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from flowless.console import emit
from flowless.train.commands.import_official import require_safetensors


@dataclass(frozen=True, kw_only=True)
class Fuse:
    """Put separately trained branches into one checkpoint: PAN-Full, or with --lite PAN-En.

    The model's scores are the weighted mean of the branches' scores, inside one network: it evaluates, exports and runs as one. The
    branches must have the same labels, depth and clip; only the RGB branch may have another number of frames per segment.
    """

    out: tyro.conf.Positional[Path]
    """The .safetensors file to write."""
    rgb: Path
    """Checkpoint of a pan-rgb model."""
    pa: Path
    """Checkpoint of a pan-pa model."""
    lite: Path | None = None
    """Checkpoint of a pan-lite model."""
    weights: tuple[float, ...] = ()
    """How much each branch's scores count, such as 1 1.5, in the order lite (where there is one), rgb, pa; by default all the same. They
    are divided by their sum."""
    json: bool = False
    """Print one JSON document instead of a table."""


def fuse(words: Sequence[str]) -> int:
    """Run `flowless fuse`."""
    ask = tyro.cli(Fuse, args=list(words), prog="flowless fuse", description=inspect.getdoc(Fuse))
    require_safetensors(ask.out)
    from rich.table import Table

    from flowless.train.checkpoints import fuse_checkpoints, save_checkpoint

    fused = fuse_checkpoints(rgb=ask.rgb, pa=ask.pa, lite=ask.lite, weights=ask.weights)
    save_checkpoint(
        ask.out,
        fused.model,
        model_name=fused.name,
        recipe=fused.recipe,
        spec=fused.spec,
        labels=fused.labels,
        metrics=fused.metrics,
    )
    branches = {name: str(path) for name, path in (("lite", ask.lite), ("rgb", ask.rgb), ("pa", ask.pa)) if path is not None}
    document = {
        "checkpoint": str(ask.out),
        "model": fused.name,
        "branches": branches,
        "weights": list(ask.weights) or [1.0] * len(branches),
        "labels": list(fused.labels),
        "clip": fused.spec.to_dict(),
    }
    table = Table("checkpoint", "model", "branches", "classes", "clip")
    table.add_row(str(ask.out), fused.name, ", ".join(branches), str(len(fused.labels)), " × ".join(map(str, fused.spec.shape)))
    emit(document, table, as_json=ask.json)
    return 0

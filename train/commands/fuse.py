"""`flowless fuse`: put separately trained branches of PAN into one checkpoint. PyTorch is imported only when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from flowless.console import emit
from flowless.train.commands.import_official import require_safetensors


@dataclass(frozen=True, kw_only=True)
class FuseArgs:
    """Put separately trained branches into one checkpoint: PAN-Full, or with --lite PAN-En.

    The fused model is one network, which is evaluated, exported and run like any other; its scores are the weighted mean of the branches'
    scores. The branches must have the same labels, depth and clip; only the RGB branch may have another number of frames per segment.
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
    """Weight of each branch's scores, such as 1 1.5, in the order lite (with --lite), rgb, pa; they are divided by their sum. Default:
    equal weights."""
    json: bool = False
    """Print one JSON document instead of a table."""


def fuse(argv: Sequence[str]) -> int:
    """Run `flowless fuse`."""
    args = tyro.cli(FuseArgs, args=list(argv), prog="flowless fuse", description=inspect.getdoc(FuseArgs))
    require_safetensors(args.out)
    from rich.markup import escape
    from rich.table import Table

    from flowless.train.checkpoints import fuse_checkpoints, save_checkpoint

    fused = fuse_checkpoints(rgb=args.rgb, pa=args.pa, lite=args.lite, weights=args.weights)
    save_checkpoint(
        args.out,
        fused.model,
        model_name=fused.name,
        recipe=fused.recipe,
        spec=fused.spec,
        labels=fused.labels,
        metrics=fused.metrics,
    )
    branches = {name: str(path) for name, path in (("lite", args.lite), ("rgb", args.rgb), ("pa", args.pa)) if path is not None}
    document = {
        "checkpoint": str(args.out),
        "model": fused.name,
        "branches": branches,
        "weights": list(args.weights) or [1.0] * len(branches),
        "labels": list(fused.labels),
        "clip": fused.spec.to_dict(),
    }
    table = Table("checkpoint", "model", "branches", "classes", "clip")
    table.add_row(escape(str(args.out)), fused.name, ", ".join(branches), str(len(fused.labels)), " × ".join(map(str, fused.spec.shape)))
    emit(document, table, as_json=args.json)
    return 0

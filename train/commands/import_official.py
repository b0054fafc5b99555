"""`flowless import`: convert a checkpoint of the official PAN code. PyTorch is imported only when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from flowless.console import emit
from flowless.errors import FlowlessError
from flowless.pipeline.dataset.sources import read_labels


@dataclass(frozen=True, kw_only=True)
class ImportArgs:
    """Convert a checkpoint of the official PAN code (zhang-can/PAN-PyTorch) into a checkpoint of flowless, with the same scores.

    The official code saves its checkpoints as ckpt.best.pth.tar; no code in the file is run. The ResNet's depth and the numbers of
    segments and classes are found in the weights. Use the result with flowless evaluate, flowless export, and, for PAN-Full and PAN-En,
    flowless fuse.
    """

    checkpoint: tyro.conf.Positional[Path]
    """The official checkpoint, such as ckpt.best.pth.tar."""
    model: Literal["pan-lite", "pan-full-rgb", "pan-full-pa"]
    """The model in the file: PAN-Lite (official modality Lite), or PAN-Full's RGB or PA branch (modalities RGB, PA)."""
    out: Path
    """The .safetensors file to write."""
    labels: Path | None = None
    """File of class names in the order of the scores: text with one name per line, a JSON list, or an index. Without it, classes are
    numbered from 0."""
    json: bool = False
    """Print one JSON document instead of a table."""


def import_official(argv: Sequence[str]) -> int:
    """Run `flowless import`."""
    args = tyro.cli(ImportArgs, args=list(argv), prog="flowless import", description=inspect.getdoc(ImportArgs))
    require_safetensors(args.out)
    from rich.markup import escape
    from rich.table import Table

    from flowless.train.checkpoints import save_checkpoint
    from flowless.train.checkpoints.official import read_official

    found = read_official(args.checkpoint, model=args.model)
    labels = _labels(args.labels, classes=found.classes) if args.labels else tuple(map(str, range(found.classes)))
    recipe = {"imported": {"file": args.checkpoint.name, "model": args.model}}
    save_checkpoint(args.out, found.model, model_name=found.name, recipe=recipe, spec=found.spec, labels=labels, metrics=found.metrics)
    document = {
        "checkpoint": str(args.out),
        "model": found.name,
        "labels": list(labels),
        "clip": found.spec.to_dict(),
        "metrics": found.metrics,
    }
    table = Table("checkpoint", "model", "classes", "clip", "epoch", "best top-1 in the file")
    top1 = found.metrics.get("best_top1")
    table.add_row(
        escape(str(args.out)),
        found.name,
        str(found.classes),
        " × ".join(map(str, found.spec.shape)),
        str(found.metrics.get("epoch", "–")),
        "–" if top1 is None else f"{top1:.1%}",
    )
    emit(document, table, as_json=args.json)
    return 0


def _labels(path: Path, *, classes: int) -> tuple[str, ...]:
    """Read the labels; raise FlowlessError where there is not one for each class."""
    labels = read_labels(path)
    if len(labels) != classes:
        raise FlowlessError(
            f"{path}: holds {len(labels)} labels; the checkpoint has {classes} classes. Give one name for each, in the order of its scores."
        )
    return labels


def require_safetensors(out: Path) -> None:
    """Refuse to write a checkpoint under a name that other commands would not recognise as one."""
    if out.suffix != ".safetensors":
        raise FlowlessError(f"{out}: a checkpoint of flowless is a .safetensors file. Name it {out.with_suffix('.safetensors')}.")

"""`flowless import`. PyTorch is imported only when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from flowless.console import emit
from flowless.errors import FlowlessError


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turn a checkpoint of the official PAN code into a checkpoint of flowless, with the same scores.

    The file is what the official code saves, ckpt.best.pth.tar; nothing in it is run. The ResNet's depth, the segments and
    the classes are found in the weights. Then: flowless evaluate, flowless export, and flowless fuse for PAN-Full and PAN-En.
    """

    checkpoint: tyro.conf.Positional[Path]
    """The official file."""
    model: Literal["pan-lite", "pan-full-rgb", "pan-full-pa"]
    """What it holds: PAN-Lite, or PAN-Full's RGB or PA branch (official modalities Lite, RGB, PA)."""
    out: Path
    """The .safetensors file to write."""
    labels: Path | None = None
    """Names of the classes in the order of the scores, one a line; without it, they are numbered from 0."""
    json: bool = False
    """Print one JSON document instead of a table."""


def import_official(words: Sequence[str]) -> int:
    """Run `flowless import`."""
    ask = tyro.cli(Import, args=list(words), prog="flowless import", description=inspect.getdoc(Import))
    require_safetensors(ask.out)
    from rich.table import Table

    from flowless.train.checkpoints import save_checkpoint
    from flowless.train.checkpoints.official import read_official

    found = read_official(ask.checkpoint, model=ask.model)
    labels = read_labels(ask.labels, classes=found.classes) if ask.labels else tuple(map(str, range(found.classes)))
    recipe = {"imported": {"file": ask.checkpoint.name, "model": ask.model}}
    save_checkpoint(ask.out, found.model, model_name=found.name, recipe=recipe, spec=found.spec, labels=labels, metrics=found.metrics)
    document = {
        "checkpoint": str(ask.out),
        "model": found.name,
        "labels": list(labels),
        "clip": found.spec.to_dict(),
        "metrics": found.metrics,
    }
    table = Table("checkpoint", "model", "classes", "clip", "epoch", "best top-1 that it names")
    top1 = found.metrics.get("best_top1")
    table.add_row(
        str(ask.out),
        found.name,
        str(found.classes),
        " × ".join(map(str, found.spec.shape)),
        str(found.metrics.get("epoch", "–")),
        "–" if top1 is None else f"{top1:.1%}",
    )
    emit(document, table, as_json=ask.json)
    return 0


def read_labels(path: Path, *, classes: int) -> tuple[str, ...]:
    """Read one class name a line; raise FlowlessError where they are not `classes` different names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FlowlessError(f"{path}: not a readable file of labels ({error}). It holds one class name a line, in UTF-8.") from error
    labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(labels) != classes:
        raise FlowlessError(
            f"{path}: holds {len(labels)} labels; the checkpoint has {classes} classes. Give one name a line, in its order."
        )
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise FlowlessError(f"{path}: names {twice[0]!r} more than once; every class needs a name of its own.")
    return labels


def require_safetensors(out: Path) -> None:
    """Refuse a name that no other command would take for a checkpoint."""
    if out.suffix != ".safetensors":
        raise FlowlessError(f"{out}: a checkpoint of flowless is a .safetensors file. Name it {out.with_suffix('.safetensors')}.")

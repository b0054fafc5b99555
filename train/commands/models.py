"""`flowless models`. PyTorch is imported only when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from flowless.console import emit, log, progress
from flowless.errors import FlowlessError

if TYPE_CHECKING:
    from rich.table import Table

#: Classes that a model is counted with: Something-Something's, as in the papers.
CLASSES = 174
#: The data set whose accuracy the table shows.
_SHOWN = "something-v1"


@dataclass(frozen=True, kw_only=True)
class Models:
    """List every model with its size, beside what its paper says; or tell a family's model card.

    Parameters and multiplications (GMAC, which the papers call FLOPs) are counted for 174 classes at the paper's input; where the
    paper has no such model, at 8 segments of 224 x 224.
    """

    family: tyro.conf.Positional[str | None] = None
    """Tell this family's model card, such as pan-lite, and list its models alone."""
    json: bool = False
    """Print one JSON document instead of the table."""


def models(words: Sequence[str]) -> int:
    """Run `flowless models`."""
    ask = tyro.cli(Models, args=list(words), prog="flowless models", description=inspect.getdoc(Models))
    from flowless.train.models import FAMILIES, MODELS

    if ask.family is not None and ask.family not in FAMILIES:
        raise FlowlessError(f"no family of models {ask.family!r}; there are {', '.join(FAMILIES)}.")
    names = [name for name in MODELS if ask.family in {None, name.rpartition("-")[0]}]
    with progress() as bar:
        rows = [described(name) for name in bar.track(names, description="counting")]
    if ask.family is not None and not ask.json:
        log.print(inspect.getdoc(FAMILIES[ask.family]), markup=False, highlight=False, soft_wrap=True)
    emit({"classes": CLASSES, "models": rows}, _table(rows), as_json=ask.json)
    return 0


def described(name: str) -> dict[str, Any]:
    """Return what `flowless models --json` says of a model: plain values."""
    from flowless.train.models import FAMILIES
    from flowless.train.models.flops import size_of
    from flowless.train.models.papers import PAPERS
    from flowless.train.recipes import find_recipe

    paper = PAPERS.get(name)
    spec = paper.spec if paper else find_recipe(f"{name}/something-v1").spec
    size = size_of(name, classes=CLASSES, spec=spec)
    card = inspect.getdoc(FAMILIES[name.rpartition("-")[0]]) or ""
    return {
        "name": name,
        "system": card.splitlines()[0].partition(":")[0],
        "card": card,
        "clip": list(spec.shape),
        "parameters": size.parameters,
        "gmacs": round(size.macs / 1e9, 3),
        "paper": None
        if paper is None
        else {
            "source": paper.source,
            "parameters": paper.parameters and round(1e6 * paper.parameters),
            "gmacs": paper.gmacs,
            "views": paper.views,
            "top1": dict(paper.top1),
        },
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(
        caption=f"{CLASSES} classes; a clip is segments × frames of a square's side; top-1 on {_SHOWN}, per cent; more with --json"
    )
    table.add_column("model", no_wrap=True)
    for name in ("clip", "parameters", "GMAC", "paper's", "GMAC", "top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        paper = row["paper"] or {"parameters": None, "gmacs": None, "top1": {}}
        segments, frames, height, *_ = row["clip"]
        table.add_row(
            row["name"],
            f"{segments} × {frames}, {height}",
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['gmacs']:.1f}",
            f"{paper['parameters'] / 1e6:.2f} M" if paper["parameters"] else "",
            f"{paper['gmacs']:.1f}" if paper["gmacs"] else "",
            str(paper["top1"].get(_SHOWN, "")),
        )
    return table

"""`flowless models`: list the models with size and published accuracy. PyTorch is imported only when it runs."""

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

#: Number of classes that a model is counted with: Something-Something's, as in the papers.
CLASSES = 174
#: The data set whose accuracy the table shows.
_SHOWN = "something-v1"


@dataclass(frozen=True, kw_only=True)
class ModelsArgs:
    """List every model with its size and the figures of its paper; or print the model card of one family.

    Parameters and multiply-accumulate operations (GMAC, which the papers call FLOPs) are counted for 174 classes at the paper's input;
    where the paper has no such model, for 8 segments of 224 x 224.
    """

    family: tyro.conf.Positional[str | None] = None
    """Print this family's model card, such as pan-lite, and list only its models."""
    json: bool = False
    """Print one JSON document instead of the table."""


def models(argv: Sequence[str]) -> int:
    """Run `flowless models`."""
    args = tyro.cli(ModelsArgs, args=list(argv), prog="flowless models", description=inspect.getdoc(ModelsArgs))
    from flowless.train.models import FAMILIES, MODELS

    if args.family is not None and args.family not in FAMILIES:
        raise FlowlessError(f"family is {args.family!r}; it must be one of {', '.join(FAMILIES)}.")
    names = [name for name in MODELS if args.family in {None, name.rpartition("-")[0]}]
    with progress() as bar:
        rows = [describe(name) for name in bar.track(names, description="counting")]
    if args.family is not None and not args.json:
        log.print(inspect.getdoc(FAMILIES[args.family]), markup=False, highlight=False, soft_wrap=True)
    emit({"classes": CLASSES, "models": rows}, _table(rows), as_json=args.json)
    return 0


def describe(name: str) -> dict[str, Any]:
    """Return a model's row of `flowless models --json`."""
    from flowless.train.models import FAMILIES
    from flowless.train.models.flops import size_of
    from flowless.train.models.paper_results import PAPER_RESULTS
    from flowless.train.recipes import find_recipe

    paper = PAPER_RESULTS.get(name)
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

    table = Table(caption=f"{CLASSES} classes; clip: segments × frames, side of the square frame; top-1 in % on {_SHOWN}; more with --json")
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

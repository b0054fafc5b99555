"""`flowless train`: train a recipe on an index. PyTorch is imported only when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from flowless.console import emit, log
from flowless.machine import keep_freed_memory
from flowless.pipeline.dataset.refused_table import refused_table
from flowless.train.models.options import BACKBONES, OPTIONS, option_names, options_for
from flowless.train.recipes import DATA_NAMES, Recipe, find_recipe
from flowless.train.train_recipe import train as train_recipe

if TYPE_CHECKING:
    from flowless.train.loop.fit import FitResult

_TRAIN_HELP = f"""usage: flowless train RECIPE --data INDEX [--val-data INDEX] [--out FOLDER] [--any-field VALUE ...]

Train a model by a recipe, on an index of labelled videos that `flowless scan` wrote.

  RECIPE is MODEL/DATA:
    MODEL  one of {", ".join(name for name in OPTIONS if name not in BACKBONES)}, followed by -r18, -r34, -r50 or -r101;
           or {", ".join(f"{name}-{backbone}" for name, own in BACKBONES.items() for backbone in own)}
    DATA   {", ".join(DATA_NAMES)}

  custom fine-tunes ImageNet weights on your own videos; tiny trains from scratch on a handful of videos;
  moving-shapes is for the videos of `flowless shapes`.
  pan-full and pan-en train their branches together; pan-rgb, pan-pa and pan-lite, trained separately, are joined by `flowless fuse`.

  flowless train pan-lite-r18/moving-shapes --data shapes/train.index.jsonl --val-data shapes/val.index.jsonl
  flowless train pan-lite-r50/custom --data index.jsonl --epochs 20 --batch-size 8

  Pretrain on Kinetics, then fine-tune on UCF101 (or HMDB51, Something-Something), as all four papers do. --from copies every tensor of
  the checkpoint that fits, batch norm's statistics included, and lists those that do not.
  flowless train stm-r50/kinetics400 --data kinetics.jsonl --out runs/kinetics
  flowless train stm-r50/ucf101 --data ucf101.jsonl --from runs/kinetics/best.safetensors

`flowless train RECIPE --help` shows every field of the recipe with its value; each can be overridden."""

#: Most epochs that the printed table shows; metrics.csv has all.
_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """Train this recipe. The run's folder will hold best.safetensors, last.safetensors, metrics.csv, TensorBoard logs, and resume.ckpt,
    from which --resume continues after Ctrl-C or a kill, with the same numbers as without the interruption.
    """  # noqa: D205 - tyro shows it as one paragraph

    data: Path
    """Index of the training videos, from `flowless scan`."""
    val_data: Path | None = None
    """Index of the validation videos; without it, best.safetensors is the last epoch."""
    out: Path | None = None
    """The run's folder; default: runs/MODEL-DATA."""
    resume: bool = False
    """Continue the run in the folder from its last saved state."""
    overwrite: bool = False
    """Replace the run in the folder."""
    json: bool = False
    """Print one JSON document instead of tables."""
    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    """The recipe's fields, with its values."""


def train(argv: Sequence[str]) -> int:
    """Run `flowless train`."""
    if not argv or argv[0] in {"-h", "--help"}:
        print(_TRAIN_HELP)
        return 0 if argv else 2
    if argv[0].startswith("-"):
        log.print(
            "flowless: the recipe comes first: flowless train RECIPE --data INDEX. See: flowless train --help", style="red", markup=False
        )
        return 2
    recipe = find_recipe(argv[0])
    _refuse_other_families(argv[1:], recipe.model)
    args = _parse(argv, recipe)
    if args.recipe.objective != recipe.objective:
        # The objective changes the augmentation's defaults, so the recipe is made again before the options override it.
        args = _parse(argv, find_recipe(argv[0], objective=args.recipe.objective))
    keep_freed_memory()
    result = train_recipe(args.recipe, args.data, val_data=args.val_data, out=args.out, resume=args.resume, overwrite=args.overwrite)
    if result.global_zero:
        emit(result.to_dict(), *_fit_tables(result), as_json=args.json)
    return 0


def _refuse_other_families(argv: Sequence[str], model: str) -> None:
    """Raise FlowlessError, which names the families that have it, for an option that is not one of this model's family."""
    given = {arg.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_") for arg in argv if arg.startswith("--")}
    if foreign := given & option_names() - option_names([type(options_for(model, {}))]):
        options_for(model, dict.fromkeys(foreign))


def _parse(argv: Sequence[str], recipe: Recipe) -> TrainArgs:
    default = TrainArgs(data=tyro.MISSING, recipe=recipe)
    return tyro.cli(TrainArgs, args=argv[1:], default=default, prog=f"flowless train {argv[0]}")


def _fit_tables(result: FitResult) -> list[RenderableType]:
    table = Table(
        "epoch", "training loss", "top-1", "validation loss", "top-1", "learning rate", "seconds", title=escape(str(result.folder))
    )
    shown = result.rows if len(result.rows) <= _ROWS else [result.rows[0], *result.rows[1 - _ROWS :]]
    for row in shown:
        best = " ←" if row["epoch"] == result.best_epoch else ""
        table.add_row(
            f"{row['epoch'] + 1}{best}",
            *(_number(row[name]) for name in ("train_loss", "train_top1", "val_loss", "val_top1")),
            f"{row['lr']:.2g}",
            f"{row['seconds']:.0f}",
        )
    best = f"{result.best} (epoch {result.best_epoch + 1} of {len(result.rows)})"
    lines = escape(f"best: {best}\nlast: {result.last}\n{result.seconds:.0f} s")
    return [table, lines, *refused_table(result.bad_videos, title="could not be read")]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

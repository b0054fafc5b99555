"""The learning stage's subcommands: `flowless train` and `flowless evaluate`. PyTorch is imported only when they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import RenderableType
from rich.table import Table

from flowless.console import emit, log
from flowless.pipeline.index import DatasetIndex
from flowless.train.evaluation import EvaluationOptions
from flowless.train.recipes import DATA_NAMES, MODEL_NAMES, Recipe, find_recipe

if TYPE_CHECKING:
    from flowless.train.fit import FitResult

_TRAIN_HELP = f"""usage: flowless train RECIPE --data INDEX [--val-data INDEX] [--out FOLDER] [--any-field VALUE ...]

Train a recipe on an index that `flowless scan` wrote.

  A recipe is MODEL/DATA:
    MODEL  {", ".join(MODEL_NAMES)}
    DATA   {", ".join(DATA_NAMES)}

  custom fine-tunes ImageNet weights on data of your own; tiny learns a handful of videos from scratch;
  moving-shapes is for the videos of `flowless shapes`.

  flowless train pan-lite-r18/moving-shapes --data shapes/train.index.jsonl --val-data shapes/val.index.jsonl
  flowless train pan-lite-r50/custom --data index.jsonl --epochs 20 --batch-size 8

`flowless train RECIPE --help` shows every field of a recipe with its value, and each can be overridden."""

#: Classes up to which the whole confusion matrix is printed.
_MATRIX_CLASSES = 30
#: Epochs that the printed history shows; metrics.csv has all.
_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class TrainWords:
    """Train this recipe. The run's folder gets best.safetensors, last.safetensors, metrics.csv, TensorBoard logs, and
    resume.ckpt, from which `--resume` goes on after Ctrl-C or a kill with the same numbers as if nothing had happened.
    """  # noqa: D205 - tyro shows it as one paragraph

    data: Path
    """Index of the training videos, from `flowless scan`."""
    val_data: Path | None = None
    """Index of the validation videos; without it, best.safetensors is the last epoch."""
    out: Path | None = None
    """The run's folder; by default runs/ and the recipe's name."""
    resume: bool = False
    """Go on with the run in the folder."""
    overwrite: bool = False
    """Replace the run in the folder."""
    json: bool = False
    """Print one JSON document instead of tables."""
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=Recipe)
    """The recipe's fields, with its values."""


def train(words: Sequence[str]) -> int:
    """Run `flowless train`."""
    if not words or words[0] in {"-h", "--help"}:
        print(_TRAIN_HELP)
        return 0 if words else 2
    if words[0].startswith("-"):
        log.print(
            "flowless: the recipe comes first: flowless train RECIPE --data INDEX. See: flowless train --help", style="red", markup=False
        )
        return 2
    recipe = find_recipe(words[0])
    options = tyro.cli(
        TrainWords,
        args=words[1:],
        default=TrainWords(data=tyro.MISSING, recipe=recipe),
        prog=f"flowless train {words[0]}",
    )
    index = DatasetIndex.load(options.data)
    val_index = DatasetIndex.load(options.val_data) if options.val_data else None
    from flowless.train.fit import first_process, fit

    result = fit(
        options.recipe,
        index=index,
        val_index=val_index,
        out=options.out or Path("runs") / words[0].replace("/", "-"),
        resume=options.resume,
        overwrite=options.overwrite,
    )
    if first_process():
        emit(result.to_dict(), *_fit_tables(result), as_json=options.json)
    return 0


@dataclass(frozen=True, kw_only=True)
class EvaluateWords:
    """Measure a checkpoint or a bundle on labelled videos: top-1, top-5, mean class accuracy, confusion matrix."""

    model: tyro.conf.Positional[Path]
    """A checkpoint (a .safetensors file of `flowless train`) or a bundle (a folder of `flowless export`)."""
    data: Path
    """Index of the videos, from `flowless scan`; its labels must be among the model's."""
    options: tyro.conf.OmitArgPrefixes[EvaluationOptions] = field(default_factory=EvaluationOptions)
    """How to run."""
    plot: Path | None = None
    """Also draw the confusion matrix into this picture (.png, .svg, .pdf)."""
    json: bool = False
    """Print one JSON document, with every prediction, instead of tables."""


def evaluate(words: Sequence[str]) -> int:
    """Run `flowless evaluate`."""
    options = tyro.cli(EvaluateWords, args=words, prog="flowless evaluate")
    from flowless.train.evaluate import evaluate as run

    if options.plot is not None:
        from flowless.train.plots import check_plot_path

        check_plot_path(options.plot)
    evaluation = run(options.model, DatasetIndex.load(options.data), options=options.options)
    if options.plot is not None:
        from flowless.train.plots import plot_confusion

        plot_confusion(evaluation, options.plot)
    document = evaluation.to_dict()
    emit(document, *_evaluation_tables(document), as_json=options.json)
    return 0


def _fit_tables(result: FitResult) -> list[RenderableType]:
    table = Table("epoch", "training loss", "top-1", "validation loss", "top-1", "rate", "seconds", title=str(result.folder))
    shown = result.rows if len(result.rows) <= _ROWS else [result.rows[0], *result.rows[1 - _ROWS :]]
    for row in shown:
        best = " ←" if row["epoch"] == result.best_epoch else ""
        table.add_row(
            f"{row['epoch']}{best}",
            *(_number(row[name]) for name in ("train_loss", "train_top1", "val_loss", "val_top1")),
            f"{row['lr']:.2g}",
            f"{row['seconds']:.0f}",
        )
    lines = f"best: {result.best} (epoch {result.best_epoch})\nlast: {result.last}\n{result.seconds:.0f} s"
    return [table, lines, *_bad_table([{"path": bad.path, "reason": bad.reason} for bad in result.bad_videos])]


def _evaluation_tables(document: dict[str, Any]) -> list[RenderableType]:
    table = Table("figure", "value", title=f"{document['model']} by {document['target']}, {document['views']}")
    for name in ("videos", "top1", "top5", "mean_class_accuracy"):
        value = document[name]
        table.add_row(name.replace("_", " "), str(value) if name == "videos" else f"{value:.2%}")
    table.add_row("seconds", f"{document['seconds']:.1f}")
    small = len(document["labels"]) <= _MATRIX_CLASSES
    confusion = _matrix_table(document) if small else _confused_table(document)
    return [table, confusion, *_bad_table(document["bad_videos"])]


def _matrix_table(document: dict[str, Any]) -> Table:
    table = Table("true \\ predicted", *(str(number) for number in range(len(document["labels"]))), title="confusion matrix")
    for number, (label, row) in enumerate(zip(document["labels"], document["confusion"], strict=True)):
        table.add_row(f"{number} {label}", *(str(count) if count else "·" for count in row))
    return table


def _confused_table(document: dict[str, Any]) -> Table:
    labels = document["labels"]
    pairs = [
        (count, row, column)
        for row, counts in enumerate(document["confusion"])
        for column, count in enumerate(counts)
        if count and row != column
    ]
    table = Table("videos", "true", "predicted", title="most often confused")
    for count, row, column in sorted(pairs, reverse=True)[:15]:
        table.add_row(str(count), labels[row], labels[column])
    return table


def _bad_table(bad: list[dict[str, str]]) -> list[RenderableType]:
    if not bad:
        return []
    table = Table("video", "reason", title=f"{len(bad)} videos could not be read")
    for item in bad[:40]:
        table.add_row(item["path"], item["reason"])
    return [table]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

"""`flowless evaluate`: accuracy of a checkpoint or a bundle on labelled videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from flowless.console import emit
from flowless.files import refuse_unwritable
from flowless.pipeline.dataset.index import Refused
from flowless.pipeline.dataset.refused_table import refused_table
from flowless.train.evaluation.options import EvaluationOptions

#: With more classes than this, the table of the most frequent confusions is printed instead of the whole matrix.
_MATRIX_CLASSES = 30


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Measure the accuracy of a checkpoint or a bundle on labelled videos: top-1, top-5, mean class accuracy, confusion matrix."""

    model: tyro.conf.Positional[Path]
    """A checkpoint (a .safetensors file of `flowless train`) or a bundle (a folder of `flowless export`)."""
    data: Path
    """Index of the videos, from `flowless scan`; its labels must be among the model's."""
    options: Annotated[tyro.conf.OmitArgPrefixes[EvaluationOptions], tyro.conf.arg(name="evaluation")] = field(
        default_factory=EvaluationOptions
    )
    """How to run."""
    plot: Path | None = None
    """Also draw the confusion matrix into this file (.png, .svg, .pdf)."""
    json: bool = False
    """Print one JSON document, with every prediction, instead of tables."""


def main(argv: Sequence[str]) -> int:
    """Run `flowless evaluate`."""
    args = tyro.cli(EvaluateArgs, args=argv, prog="flowless evaluate")
    from flowless.train.evaluation.evaluate import evaluate

    if args.plot is not None:
        from flowless.plots import check_picture_path

        check_picture_path(args.plot)
        refuse_unwritable(args.plot)
    evaluation = evaluate(args.model, args.data, options=args.options)
    if args.plot is not None:
        from flowless.plots import save_confusion
        from flowless.train.evaluation.metrics import confusion_matrix

        title = f"{evaluation.model}, {evaluation.target}: top-1 {evaluation.top1:.1%}"
        save_confusion(args.plot, confusion_matrix(evaluation.scores, evaluation.labels), evaluation.names, title=title)
    document = evaluation.to_dict()
    emit(document, *_evaluation_tables(document), as_json=args.json)
    return 0


def _evaluation_tables(document: dict[str, Any]) -> list[RenderableType]:
    table = Table("metric", "value", title=f"{document['model']} on {document['target']}, {_views(document)}")
    for name in ("videos", "top1", "top5", "mean_class_accuracy"):
        value = document[name]
        table.add_row(name.replace("_", " "), str(value) if name == "videos" else f"{value:.2%}")
    table.add_row("seconds", f"{document['seconds']:.1f}")
    table.add_row("decoded by", ", ".join(f"{decoder}: {count}" for decoder, count in document["decoded_by"].items()))
    for reason, count in document["fallbacks"].items():
        table.add_row("not by DALI", escape(f"{reason} ({count})"))
    small = len(document["labels"]) <= _MATRIX_CLASSES
    confusion = _matrix_table(document) if small else _confused_table(document)
    return [table, confusion, *refused_table([Refused(**item) for item in document["bad_videos"]], title="could not be read")]


def _views(document: dict[str, Any]) -> str:
    count, frame = document["views_per_video"], document["frame"]
    averaged = "" if count == 1 else f", {document['average']} averaged"
    return f"{document['views']}: {count} view{'' if count == 1 else 's'} of {frame['height']} x {frame['width']}{averaged}"


def _matrix_table(document: dict[str, Any]) -> Table:
    table = Table("true \\ predicted", *(str(number) for number in range(len(document["labels"]))), title="confusion matrix")
    for number, (label, row) in enumerate(zip(document["labels"], document["confusion"], strict=True)):
        table.add_row(escape(f"{number} {label}"), *(str(count) if count else "·" for count in row))
    return table


def _confused_table(document: dict[str, Any]) -> Table:
    labels = document["labels"]
    pairs = [
        (count, row, column)
        for row, counts in enumerate(document["confusion"])
        for column, count in enumerate(counts)
        if count and row != column
    ]
    table = Table("videos", "true", "predicted", title="most frequent confusions")
    for count, row, column in sorted(pairs, reverse=True)[:15]:
        table.add_row(str(count), escape(labels[row]), escape(labels[column]))
    return table

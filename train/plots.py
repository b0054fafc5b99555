"""Pictures of an evaluation."""

from __future__ import annotations

from pathlib import Path

from flowless.errors import FlowlessError
from flowless.files import whole_file
from flowless.train.evaluation import Evaluation
from flowless.train.metrics import confusion_matrix

_FORMATS = (".png", ".svg", ".pdf", ".jpg")


def plot_confusion(evaluation: Evaluation, path: Path) -> None:
    """Draw the confusion matrix, each row scaled to its class's videos, into `path` (.png, .svg, .pdf or .jpg)."""
    from matplotlib.figure import Figure

    check_plot_path(path)
    matrix = confusion_matrix(evaluation.scores, evaluation.labels)
    count = len(matrix)
    shares = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    side = 3 + 0.34 * min(count, 60)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{evaluation.model}, {evaluation.target}: top-1 {evaluation.top1:.1%}")
    if count <= 60:
        axes.set_xticks(range(count), evaluation.names, rotation=90)
        axes.set_yticks(range(count), evaluation.names)
    if count <= 30:
        for row, column in zip(*matrix.nonzero(), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=colour)
    with whole_file(path) as draft:
        figure.savefig(draft, dpi=120)


def check_plot_path(path: Path) -> None:
    """Refuse a picture's name that no format belongs to."""
    if path.suffix.lower() not in _FORMATS:
        raise FlowlessError(f"{path}: no picture format ends in {path.suffix!r}. Name a file that ends in {', '.join(_FORMATS)}.")

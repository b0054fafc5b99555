"""`flowless.train`: train a recipe by its name, from Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowless.errors import FlowlessError
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.recipes import Recipe, find_recipe

if TYPE_CHECKING:
    from flowless.train.loop.fit import FitResult

Index = str | os.PathLike[str] | DatasetIndex


def train(
    recipe: str | Recipe,
    data: Index,
    *,
    val_data: Index | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **fields: Any,
) -> FitResult:
    """Train a recipe on labelled videos, as `flowless train` does.

    On a CPU the command is faster, since it first calls `flowless.machine.keep_freed_memory`. That changes the whole process, so this
    function leaves it to the caller.

    Args:
        recipe: Its name, such as `pan-lite-r50/something-v1`, or one that `find_recipe` returned.
        data: Index of the training videos: the file that `flowless scan` wrote, or what `flowless.scan` returned.
        val_data: Index of the validation videos; without it, `best.safetensors` is the last epoch.
        out: The run's folder; None: `runs/MODEL-DATA`, by the recipe's name.
        resume: Continue the run in the folder.
        overwrite: Replace the run in the folder.
        fields: Fields of the recipe to change, as in `epochs=20`; only beside a recipe's name.

    Returns:
        The paths of the checkpoints, the best epoch, and a row of metrics for each epoch.

    Raises:
        FlowlessError: A name, an index or a field cannot be used, the folder is taken, or training diverges.
    """
    if not isinstance(recipe, str | Recipe):
        raise FlowlessError(f"recipe is {recipe!r}; it must be a name, such as pan-lite-r50/custom, or what find_recipe returned.")
    if isinstance(recipe, str):
        recipe = find_recipe(recipe, **fields)
    elif fields:
        raise FlowlessError(f"{', '.join(fields)}: a recipe's fields can be changed beside its name only: find_recipe(NAME, ...).")
    # Before PyTorch is imported, which takes seconds.
    index, val_index = _index(data), None if val_data is None else _index(val_data)
    out = Path("runs") / recipe.name.replace("/", "-") if out is None else out
    from flowless.train.loop.fit import fit

    return fit(recipe, index=index, val_index=val_index, out=out, resume=resume, overwrite=overwrite)


def _index(data: Index) -> DatasetIndex:
    return data if isinstance(data, DatasetIndex) else DatasetIndex.load(data)

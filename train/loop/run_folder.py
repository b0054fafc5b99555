"""A run's folder: what it is, its history, its weights, and the state to go on from. Every file appears whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from flowless.console import log
from flowless.errors import FlowlessError, first_line
from flowless.files import whole_file, write_json
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.checkpoints import save_checkpoint, versions
from flowless.train.checkpoints.start import Start
from flowless.train.loop.module import TrainingModule
from flowless.train.recipes import Recipe

COLUMNS = ("epoch", "train_loss", "train_top1", "val_loss", "val_top1", "lr", "seconds")


class RunFolder:
    """The files of one training run.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = path / "run.json"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.state = path / "resume.ckpt"
        self.history = path / "metrics.csv"
        self.result = path / "result.json"

    def begin(
        self,
        recipe: Recipe,
        index: DatasetIndex,
        *,
        val_index: DatasetIndex | None,
        overwrite: bool,
        spec: ClipSpec,
        start: Start | None = None,
    ) -> None:
        """Start a new run here; refuse a folder that holds one, unless `overwrite`.

        Args:
            recipe: What is trained.
            index: Its videos.
            val_index: The videos that validate it.
            overwrite: Whether a run may be replaced.
            spec: The clip, pixels' normalisation included.
            start: What was taken of a checkpoint.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FlowlessError(f"{self.path}: a file. A run needs a folder; name another with --out.")
        if self.path.is_dir() and any(self.path.iterdir()):
            if not overwrite:
                what = "a run" if self.description.exists() else "other files"
                raise FlowlessError(
                    f"{self.path}: holds {what} already. Go on with it by --resume, replace it by --overwrite, or name another with --out."
                )
            if not self.description.exists():
                raise FlowlessError(f"{self.path}: holds files that are no run; --overwrite replaces only runs. Name another with --out.")
            for file in (self.state, self.best, self.last, self.history, self.result):
                file.unlink(missing_ok=True)
            for file in (self.path / "tensorboard").glob("events.out.*"):
                file.unlink()
        write_json(self.description, _description(recipe, index, val_index=val_index, spec=spec, start=start))

    def spec(self, recipe: Recipe) -> ClipSpec:
        """Return the clip that the run was started with; a run of an earlier version says the recipe's."""
        document = json.loads(self.description.read_text(encoding="utf-8"))
        return ClipSpec.from_dict(document["spec"]) if "spec" in document else recipe.spec

    def check_resumable(self, recipe: Recipe, index: DatasetIndex) -> None:
        """Refuse to go on where there is nothing to go on from, or where it would be another run."""
        if not self.description.is_file():
            raise FlowlessError(f"{self.path}: holds no run to resume. Start one without --resume.")
        if not self.state.is_file():
            raise FlowlessError(
                f"{self.path}: this run has not finished an epoch, so there is nothing to resume. Start it with --overwrite."
            )
        try:
            before = json.loads(self.description.read_text(encoding="utf-8"))
            old = Recipe.from_dict(before["recipe"])
            labels, videos = before["labels"], before["videos"]
        except (ValueError, KeyError, TypeError) as error:
            raise FlowlessError(f"{self.description}: damaged ({error}). Start the run again with --overwrite.") from error
        changed = old.differences(recipe)
        if changed:
            raise FlowlessError(
                f"{self.path}: was started with another recipe ({'; '.join(changed)}). Resume with the same fields, or start anew."
            )
        if labels != list(index.labels) or videos != len(index.videos):
            raise FlowlessError(
                f"{self.path}: was started on {videos} videos of {len(labels)} labels; this index has {len(index.videos)} of "
                f"{len(index.labels)}. Resume with the same index."
            )
        self._check_state()

    def write_history(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write metrics.csv, one row an epoch."""
        with whole_file(self.history) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            for row in rows:
                writer.writerow({name: "" if row[name] is None else f"{row[name]:.6g}" for name in COLUMNS})

    def _check_state(self) -> None:
        import pickle

        import torch

        try:
            torch.load(self.state, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise FlowlessError(
                f"{self.state}: no readable training state ({first_line(error)}). "
                f"The weights in {self.last.name} are separate; start the run again with --overwrite."
            ) from error


class KeepRun(Checkpoint):
    """Writes the run's files at the end of every epoch; the state to resume from last, when all else is safe."""

    def __init__(self, folder: RunFolder, *, labels: Sequence[str]) -> None:
        super().__init__()
        self.folder = folder
        self.labels = tuple(labels)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write history, last and best weights, and the state."""
        assert isinstance(pl_module, TrainingModule)
        first = trainer.is_global_zero
        if first:
            self.folder.write_history(pl_module.rows)
            self._write_weights(pl_module, self.folder.last)
            if is_best(pl_module.rows):
                self._write_weights(pl_module, self.folder.best)
        # Every process takes part in collecting the state; the first one writes it.
        with whole_file(self.folder.state) if first else nullcontext(self.folder.state) as draft:
            trainer.save_checkpoint(draft)
        if first:
            log.print(_epoch_line(pl_module.rows[-1], epochs=pl_module.recipe.epochs), soft_wrap=True)

    def _write_weights(self, module: TrainingModule, path: Path) -> None:
        recipe = module.recipe
        save_checkpoint(
            path,
            module.model,
            model_name=recipe.model,
            recipe=recipe.to_dict(),
            spec=module.model.spec,
            labels=self.labels,
            metrics=module.rows[-1],
        )


def quality(row: dict[str, Any]) -> tuple[float, float] | None:
    """Return what makes an epoch better than another: validation top-1, then its loss; without validation, training's."""
    if row["val_top1"] is not None:
        return row["val_top1"], -row["val_loss"]
    return None


def best_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the best epoch; the last one, where no epoch was validated."""
    validated = [row for row in rows if quality(row) is not None]
    return max(validated, key=lambda row: quality(row) or (0.0, 0.0)) if validated else rows[-1]


def is_best(rows: Sequence[dict[str, Any]]) -> bool:
    """Tell whether the newest epoch is the best so far."""
    return best_row(rows) is rows[-1]


def _epoch_line(row: dict[str, Any], *, epochs: int) -> str:
    parts = [f"epoch {row['epoch'] + 1}/{epochs}: training loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.1%}"]
    if row["val_top1"] is not None:
        parts.append(f"validation loss {row['val_loss']:.3f}, top-1 {row['val_top1']:.1%}")
    return "; ".join([*parts, f"{row['seconds']:.0f} s"])


def _description(
    recipe: Recipe, index: DatasetIndex, *, val_index: DatasetIndex | None, spec: ClipSpec, start: Start | None
) -> dict[str, Any]:
    return {
        "recipe": recipe.to_dict(),
        "labels": list(index.labels),
        "videos": len(index.videos),
        "validation_videos": len(val_index.videos) if val_index else 0,
        "spec": spec.to_dict(),
        "start": start and start.to_dict(),
        "versions": versions(),
    }

"""A run's folder: what it is, its history, its weights, and the state to go on from. Every file appears whole."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from flowless.console import log
from flowless.errors import FlowlessError, first_line
from flowless.files import drafts_of, whole_file, write_json
from flowless.interrupts import StopRequest
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.checkpoints import save_checkpoint, versions
from flowless.train.checkpoints.start import Start
from flowless.train.loop.module import TrainingModule
from flowless.train.recipes import Recipe

COLUMNS = ("epoch", "train_loss", "train_top1", "val_loss", "val_top1", "lr", "seconds")
#: What a process wishes of all that train together: to keep the state after the next step, or to stop after that besides.
_KEEP, _STOP = 1, 2


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
        self._remove_drafts()
        if self.path.is_dir() and any(self.path.iterdir()):
            if not overwrite:
                what = "a run" if self.description.exists() else "other files"
                raise FlowlessError(
                    f"{self.path}: holds {what} already. Go on with it by --resume, replace it by --overwrite, or name another with --out."
                )
            if not self.description.exists():
                raise FlowlessError(f"{self.path}: holds files that are no run; --overwrite replaces only runs. Name another with --out.")
            for file in self._outputs:
                file.unlink(missing_ok=True)
            for file in (self.path / "tensorboard").glob("events.out.*"):
                file.unlink()
        write_json(self.description, _description(recipe, index, val_index=val_index, spec=spec, start=start))
        if start is not None:
            log.print(str(start), markup=False, highlight=False, soft_wrap=True)

    def as_started(self, recipe: Recipe) -> tuple[Recipe, ClipSpec]:
        """Return a recipe that starts from what the run here was started from, whatever the command that resumes it names, and its clip.

        A run of an earlier version says no clip: it has the recipe's.
        """
        before = json.loads(self.description.read_text(encoding="utf-8"))
        start = {name: before["recipe"][name] for name in ("start_from", "pretrained_path") if name in before["recipe"]}
        return replace(recipe, **start), ClipSpec.from_dict(before["spec"]) if "spec" in before else recipe.spec

    @property
    def kept(self) -> bool:
        """Whether there is a state to go on from; a run that was stopped before its first one starts at its first step."""
        return self.state.is_file()

    def check_resumable(self, recipe: Recipe, index: DatasetIndex) -> None:
        """Refuse to go on where there is no run, or where it would be another one."""
        self._remove_drafts()
        if not self.description.is_file():
            raise FlowlessError(f"{self.path}: holds no run to resume. Start one without --resume.")
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
        average = before.get("spec", {}).get("average", recipe.average)
        if recipe.average != average:
            raise FlowlessError(
                f"{self.path}: was started with average {average}, which its checkpoints keep; here it is {recipe.average}. "
                f"Resume with the same, and choose another when you test: flowless evaluate --average {recipe.average}."
            )
        if before.get("index") not in {None, _digest(index)} and labels == list(index.labels) and videos == len(index.videos):
            raise FlowlessError(
                f"{self.path}: was started on other videos, or on the same with other labels: as many of them. Resume with the same index."
            )
        if sorted(labels) == sorted(index.labels) and labels != list(index.labels):
            raise FlowlessError(f"{self.path}: was started with the same labels in another order. Resume with the same index.")
        if labels != list(index.labels) or videos != len(index.videos):
            raise FlowlessError(
                f"{self.path}: was started on {videos} videos of {len(labels)} labels; this index has {len(index.videos)} of "
                f"{len(index.labels)}. Resume with the same index."
            )
        if self.kept:
            self._check_state()

    def write_history(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write metrics.csv, one row an epoch."""
        with whole_file(self.history) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            for row in rows:
                writer.writerow({name: "" if row[name] is None else f"{row[name]:.6g}" for name in COLUMNS})

    @property
    def _outputs(self) -> tuple[Path, ...]:
        return self.state, self.best, self.last, self.history, self.result

    def _remove_drafts(self) -> None:
        """Remove half-written files that a killed run has left here."""
        drafts = [draft for file in (self.description, *self._outputs) for draft in drafts_of(file)]
        if self.description.is_file() or (drafts and {path.name for path in self.path.iterdir()} == {draft.name for draft in drafts}):
            for draft in drafts:
                draft.unlink(missing_ok=True)

    def _check_state(self) -> None:
        import pickle

        try:
            torch.load(self.state, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise FlowlessError(
                f"{self.state}: no readable training state ({first_line(error)}). "
                f"The weights in {self.last.name} are separate; start the run again with --overwrite."
            ) from error


class KeepRun(Checkpoint):
    """Writes the run's files at the end of every epoch, the state to resume from last, when all else is safe; that also within an epoch.

    Within an epoch the state is kept when `keep_every` minutes have passed since it was kept last, and when it is asked to stop. It
    is kept after a step of the optimiser, when nothing else of a step is left to be kept.

    Args:
        folder: Where to.
        labels: The labels, in the order of the scores.
        stop: Whether training was asked to stop.
    """

    def __init__(self, folder: RunFolder, *, labels: Sequence[str], stop: StopRequest) -> None:
        super().__init__()
        self.folder = folder
        self.labels = tuple(labels)
        self.stop = stop
        self.kept_batches = 0
        """Batches of the newest, unfinished epoch that the state holds."""
        self._kept_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count the minutes."""
        assert isinstance(pl_module, TrainingModule)
        self.kept_batches = pl_module.first_batch
        self._kept_at = time.monotonic()
        pl_module.wish = lambda: self._wish(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the state, where that is due; stop, where that is asked."""
        assert isinstance(pl_module, TrainingModule)
        done = batch_idx + 1
        # An epoch's end keeps the state itself.
        if done % pl_module.recipe.accumulate or done == trainer.num_training_batches:
            return
        # Several processes have to do the same; one alone need not wait for its next batch.
        wish = self._wish(trainer, pl_module) if pl_module.processes.alone else pl_module.granted
        if not wish:
            return
        self._write_state(trainer, pl_module, epoch=pl_module.epoch_so_far(done))
        self.kept_batches = done
        if wish == _STOP:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write history, last and best weights, and the state."""
        assert isinstance(pl_module, TrainingModule)
        self._write_state(trainer, pl_module, epoch=None)
        self.kept_batches = 0
        if trainer.is_global_zero:
            log.print(_epoch_line(pl_module.rows[-1], epochs=pl_module.recipe.epochs), soft_wrap=True)
        stop = pl_module.processes.agree(wish=self._wish(trainer, pl_module)) == _STOP
        if stop and len(pl_module.rows) < pl_module.recipe.epochs:
            raise KeyboardInterrupt

    def _wish(self, trainer: pl.Trainer, module: TrainingModule) -> int:
        if self.stop.made or trainer.received_sigterm:
            return _STOP
        due = trainer.is_global_zero and time.monotonic() - self._kept_at >= 60 * module.recipe.keep_every
        return _KEEP if due else 0

    def _write_state(self, trainer: pl.Trainer, module: TrainingModule, *, epoch: dict[str, Any] | None) -> None:
        """Write the state, of a whole epoch all else before; every process takes part, and ends where the first cannot write."""
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if epoch is not None:
            state["flowless_epoch"] = epoch
        error = None
        if trainer.is_global_zero:
            try:
                if epoch is None:
                    self._write_results(module)
                content = io.BytesIO()  # written by PyTorch itself, a full disk would be an error without its name
                torch.save(state, content)
                with whole_file(self.folder.state) as draft:
                    draft.write_bytes(content.getbuffer())
            except Exception as caught:
                error = caught
        module.processes.agree(error)
        self._kept_at = time.monotonic()

    def _write_results(self, module: TrainingModule) -> None:
        self.folder.write_history(module.rows)
        self._write_weights(module, self.folder.last)
        if is_best(module.rows):
            self._write_weights(module, self.folder.best)

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


def _digest(index: DatasetIndex) -> str:
    """Return what stands for the videos of an index and their labels."""
    lines = (f"{video.id}\t{video.label}" for video in index.videos)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _description(
    recipe: Recipe, index: DatasetIndex, *, val_index: DatasetIndex | None, spec: ClipSpec, start: Start | None
) -> dict[str, Any]:
    return {
        "recipe": recipe.to_dict(),
        "labels": list(index.labels),
        "videos": len(index.videos),
        "index": _digest(index),
        "validation_videos": len(val_index.videos) if val_index else 0,
        "spec": spec.to_dict(),
        "start": start and start.to_dict(),
        "versions": versions(),
    }

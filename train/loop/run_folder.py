"""The folder of a training run: its description, history, weights and resumable state. Every file appears whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowless.console import log
from flowless.errors import FlowlessError, first_line
from flowless.files import drafts_of, whole_file, write_json
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.checkpoints import versions
from flowless.train.checkpoints.transfer import WeightTransfer
from flowless.train.recipes import Recipe

#: Columns of metrics.csv.
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
        transfer: WeightTransfer | None = None,
    ) -> None:
        """Start a new run here; refuse a folder that holds one, unless `overwrite`.

        Args:
            recipe: The recipe that is trained.
            index: The training videos.
            val_index: The validation videos.
            overwrite: Whether a run in the folder may be replaced.
            spec: The clip, with the normalisation of its pixels.
            transfer: Which weights were taken from a checkpoint.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FlowlessError(f"{self.path}: a file; a run needs a folder. Name another with --out.")
        self._remove_drafts()
        if self.path.is_dir() and any(self.path.iterdir()):
            if not overwrite:
                what = "a run" if self.description.exists() else "other files"
                raise FlowlessError(
                    f"{self.path}: holds {what} already. Continue it with --resume, replace it with --overwrite, or name another folder "
                    f"with --out."
                )
            if not self.description.exists():
                raise FlowlessError(
                    f"{self.path}: holds files other than a run; --overwrite replaces only runs. Name another folder with --out."
                )
            for file in self._outputs:
                file.unlink(missing_ok=True)
            for file in (self.path / "tensorboard").glob("events.out.*"):
                file.unlink()
        write_json(self.description, _description(recipe, index, val_index=val_index, spec=spec, transfer=transfer))
        if transfer is not None:
            log.print(str(transfer), markup=False, highlight=False, soft_wrap=True)

    def with_initial_weights(self, recipe: Recipe) -> tuple[Recipe, ClipSpec]:
        """Return the recipe with the sources of initial weights (`start_from`, `pretrained_path`) of the run here, and the run's clip.

        The command that resumes a run need not name them again. A run of an earlier version has no saved clip: it has the recipe's.
        """
        before = json.loads(self.description.read_text(encoding="utf-8"))
        sources = {name: before["recipe"][name] for name in ("start_from", "pretrained_path") if name in before["recipe"]}
        return replace(recipe, **sources), ClipSpec.from_dict(before["spec"]) if "spec" in before else recipe.spec

    @property
    def has_state(self) -> bool:
        """Whether a state to resume from is saved; a run stopped before that starts at its first step."""
        return self.state.is_file()

    def check_resumable(self, recipe: Recipe, index: DatasetIndex) -> None:
        """Refuse to resume where there is no run, or where recipe or index are not those of the run."""
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
                f"{self.path}: was started with another recipe ({'; '.join(changed)}). Resume with the same fields, or start a new run."
            )
        average = before.get("spec", {}).get("average", recipe.average)
        if recipe.average != average:
            raise FlowlessError(
                f"{self.path}: was started with average {average}, which its checkpoints store; here it is {recipe.average}. "
                f"Resume with the same, and choose another when you test: flowless evaluate --average {recipe.average}."
            )
        if before.get("index") not in {None, _digest(index)} and labels == list(index.labels) and videos == len(index.videos):
            raise FlowlessError(
                f"{self.path}: was started on equally many, but other videos, or on the same with other labels. Resume with the same index."
            )
        if sorted(labels) == sorted(index.labels) and labels != list(index.labels):
            raise FlowlessError(f"{self.path}: was started with the same labels in another order. Resume with the same index.")
        if labels != list(index.labels) or videos != len(index.videos):
            raise FlowlessError(
                f"{self.path}: was started on {videos} videos of {len(labels)} labels; this index has {len(index.videos)} of "
                f"{len(index.labels)}. Resume with the same index."
            )
        if self.has_state:
            self._check_state()

    def write_history(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write metrics.csv, one row per epoch."""
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
                f"{self.state}: not a readable training state ({first_line(error)}). "
                f"The weights in {self.last.name} are not affected. Start the run again with --overwrite."
            ) from error


def _digest(index: DatasetIndex) -> str:
    """Return a short hash of the videos of an index and their labels."""
    lines = (f"{video.id}\t{video.label}" for video in index.videos)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _description(
    recipe: Recipe, index: DatasetIndex, *, val_index: DatasetIndex | None, spec: ClipSpec, transfer: WeightTransfer | None
) -> dict[str, Any]:
    return {
        "recipe": recipe.to_dict(),
        "labels": list(index.labels),
        "videos": len(index.videos),
        "index": _digest(index),
        "validation_videos": len(val_index.videos) if val_index else 0,
        "spec": spec.to_dict(),
        "start": transfer and transfer.to_dict(),
        "versions": versions(),
    }

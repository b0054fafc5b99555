"""The Lightning callback that saves a run's history, weights and resumable state, after every epoch and within long ones."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from flowless.console import log
from flowless.files import whole_file
from flowless.interrupts import StopRequest
from flowless.train.checkpoints import save_checkpoint
from flowless.train.loop.run_folder import RunFolder
from flowless.train.loop.training_module import TrainingModule

#: Requests of one process to all that train together: save the state after the next step; save it and stop.
_SAVE, _STOP = 1, 2


class SaveCallback(Checkpoint):
    """Saves the run at the end of every epoch: history and weights first, then the state to resume from.

    Within an epoch it saves the state when `keep_every` minutes have passed since it was last saved, and when a stop is requested.
    It does so only after a step of the optimiser, when no accumulated gradient would have to be saved.

    Args:
        folder: The run's folder.
        labels: The labels, in the order of the scores.
        stop: Set when Ctrl-C requests a stop.
    """

    def __init__(self, folder: RunFolder, *, labels: Sequence[str], stop: StopRequest) -> None:
        super().__init__()
        self.folder = folder
        self.labels = tuple(labels)
        self.stop = stop
        self.saved_batches = 0
        """Batches of the current, unfinished epoch that the saved state includes."""
        self._saved_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of `keep_every`."""
        assert isinstance(pl_module, TrainingModule)
        self.saved_batches = pl_module.first_batch
        self._saved_at = time.monotonic()
        pl_module.request = lambda: self._request(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save the state where that is due, and stop where that is requested."""
        assert isinstance(pl_module, TrainingModule)
        done = batch_idx + 1
        # After an epoch's last batch, `on_train_epoch_end` saves.
        if done % pl_module.recipe.accumulate or done == trainer.num_training_batches:
            return
        # Several processes have agreed before the batch, so that all do the same; a single one uses its newest request.
        request = self._request(trainer, pl_module) if pl_module.processes.alone else pl_module.agreed_request
        if not request:
            return
        self._save_state(trainer, pl_module, epoch=pl_module.epoch_so_far(done))
        self.saved_batches = done
        if request == _STOP:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save history, last and best weights, and the state."""
        assert isinstance(pl_module, TrainingModule)
        self._save_state(trainer, pl_module, epoch=None)
        self.saved_batches = 0
        if trainer.is_global_zero:
            log.print(_epoch_line(pl_module.rows[-1], epochs=pl_module.recipe.epochs), soft_wrap=True)
        stop = pl_module.processes.agree(request=self._request(trainer, pl_module)) == _STOP
        if stop and len(pl_module.rows) < pl_module.recipe.epochs:
            raise KeyboardInterrupt

    def _request(self, trainer: pl.Trainer, module: TrainingModule) -> int:
        if self.stop.made or trainer.received_sigterm:
            return _STOP
        due = trainer.is_global_zero and time.monotonic() - self._saved_at >= 60 * module.recipe.keep_every
        return _SAVE if due else 0

    def _save_state(self, trainer: pl.Trainer, module: TrainingModule, *, epoch: dict[str, Any] | None) -> None:
        """Save the state; at an epoch's end (`epoch` None) history and weights before it.

        Every process has to call it, and all of them stop if the first one cannot write.
        """
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if epoch is not None:
            state["flowless_epoch"] = epoch
        error = None
        if trainer.is_global_zero:
            try:
                if epoch is None:
                    self._save_results(module)
                content = io.BytesIO()  # torch.save to a file would report a full disk without the file's name
                torch.save(state, content)
                with whole_file(self.folder.state) as draft:
                    draft.write_bytes(content.getbuffer())
            except Exception as caught:
                error = caught
        module.processes.agree(error)
        self._saved_at = time.monotonic()

    def _save_results(self, module: TrainingModule) -> None:
        self.folder.write_history(module.rows)
        self._save_weights(module, self.folder.last)
        if best_row(module.rows) is module.rows[-1]:
            self._save_weights(module, self.folder.best)

    def _save_weights(self, module: TrainingModule, path: Path) -> None:
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


def best_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the epoch with the highest validation top-1, of equal ones that with the lowest loss; without validation, the last."""
    validated = [row for row in rows if row["val_top1"] is not None]
    return max(validated, key=lambda row: (row["val_top1"], -row["val_loss"])) if validated else rows[-1]


def _epoch_line(row: dict[str, Any], *, epochs: int) -> str:
    parts = [f"epoch {row['epoch'] + 1}/{epochs}: training loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.1%}"]
    if row["val_top1"] is not None:
        parts.append(f"validation loss {row['val_loss']:.3f}, top-1 {row['val_top1']:.1%}")
    return "; ".join([*parts, f"{row['seconds']:.0f} s"])

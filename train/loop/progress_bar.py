"""The Lightning callback that shows one progress bar for the whole training."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.progress import Progress, TaskID

from flowless.console import progress
from flowless.train.loop.training_module import TrainingModule


class ProgressBar(Callback):
    """One progress bar, counted in batches, over all epochs of a run."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar, in the first process only; a resumed run starts where its saved state ends."""
        if not trainer.is_global_zero:
            return
        total = int(trainer.num_training_batches)
        self._progress = progress()
        self._progress.start()
        epochs = trainer.max_epochs or 0
        assert isinstance(pl_module, TrainingModule)
        done = total * trainer.current_epoch + pl_module.first_batch
        self._task = self._progress.add_task("training", total=total * epochs, completed=done)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Advance by one batch."""
        if self._progress is not None:
            self._progress.advance(self._task)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the number of finished epochs."""
        if self._progress is not None:
            self._progress.update(self._task, description=f"{trainer.current_epoch + 1} of {trainer.max_epochs} epochs")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

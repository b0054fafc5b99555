"""Training a recipe on an index, from the first epoch or from where it stopped."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.progress import Progress, TaskID

from flowless.console import log, progress
from flowless.errors import FlowlessError
from flowless.files import write_json
from flowless.interrupts import StopRequest
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex, Refused
from flowless.train.checkpoints.checkpoint import Checkpoint, load_checkpoint
from flowless.train.checkpoints.start import Start, start_from
from flowless.train.loop.data import check_shares, check_training_index, check_views, device_batch, relabel, warn_of_short_videos
from flowless.train.loop.module import TrainingModule
from flowless.train.loop.run_folder import KeepRun, RunFolder, best_row
from flowless.train.models import Recognizer, build_model
from flowless.train.models.backbones.backbone import normalisation
from flowless.train.models.layers.vap import start_heads
from flowless.train.recipes import Recipe

_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
#: Answer to Ctrl-C.
_STOPPING = "flowless: stopping after this step, or after this validation, so that nothing is lost. Ctrl-C again stops at once."
#: Seconds that a process which ends waits for those that it started.
_PATIENCE = 30


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training run left behind."""

    folder: Path
    best: Path
    """Weights of the epoch with the best validation (the last epoch without validation)."""
    last: Path
    rows: list[dict[str, Any]]
    """One dictionary an epoch, as in metrics.csv."""
    best_epoch: int
    best_top1: float | None
    """Validation top-1 of the best epoch; None without validation."""
    seconds: float
    """Wall time of this call's training."""
    bad_videos: list[Refused] = field(default_factory=list)
    global_zero: bool = True
    """Whether this process is the first of all that trained together, over all nodes: the one that writes and prints."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "folder": str(self.folder),
            "best": str(self.best),
            "last": str(self.last),
            "epochs": len(self.rows),
            "best_epoch": self.best_epoch,
            "best_top1": self.best_top1,
            "seconds": self.seconds,
            "history": self.rows,
            "bad_videos": [{"path": bad.path, "reason": bad.reason} for bad in self.bad_videos],
        }


def fit(
    recipe: Recipe,
    *,
    index: DatasetIndex,
    val_index: DatasetIndex | None = None,
    out: str | os.PathLike[str],
    resume: bool = False,
    overwrite: bool = False,
) -> FitResult:
    """Train a recipe.

    The state is kept every few minutes, at the end of every epoch and at Ctrl-C, so a run that was stopped or killed goes on from there,
    with the same numbers as if it had never stopped.

    Args:
        recipe: What to train and how.
        index: Training videos.
        val_index: Validation videos: its labels must be among the training labels.
        out: The run's folder.
        resume: Go on with the run in `out`.
        overwrite: Replace the run in `out`.

    Raises:
        FlowlessError: The indexes do not fit each other or the recipe, the folder is taken, too many videos cannot be
            read, or training diverges.
    """
    folder = RunFolder(Path(out))
    _check_videos(index, recipe)
    if val_index is not None:
        val_index = relabel(val_index, index.labels)
    _check_machine(recipe)
    going_on = resume and folder.kept
    stop = StopRequest(_STOPPING)
    with _quiet():
        # Before the folder is claimed: only Lightning knows which of the processes that torchrun, SLURM, MPI or DDP itself started
        # is the first one. The others find the folder claimed.
        keep = KeepRun(folder, labels=index.labels, stop=stop)
        trainer = _trainer(recipe, folder, keep=keep, validate=val_index is not None)
        device_batch(recipe, trainer.world_size)
        if val_index is not None:
            check_shares(val_index, trainer.world_size)
        # So is the model made: what cannot be built must not leave a folder that looks like a run.
        torch.manual_seed(recipe.seed)
        if resume and trainer.is_global_zero:
            folder.check_resumable(recipe, index)
            if not going_on:
                log.print(f"flowless: nothing was kept of {folder.path} yet; it starts at its first step.", style="yellow")
        recipe, spec = folder.as_started(recipe) if resume else (recipe, None)
        model, taken = _start(recipe, spec=spec, labels=index.labels, going_on=going_on)
        if trainer.is_global_zero and not resume:
            folder.begin(recipe, index, val_index=val_index, overwrite=overwrite, spec=model.spec, start=taken)
        module = TrainingModule(model, recipe, index=index, val_index=val_index)
        start = time.perf_counter()
        with stop.noted():
            _run(trainer, module, keep, resume=going_on)
    result = _result(module, folder, seconds=time.perf_counter() - start, global_zero=trainer.is_global_zero)
    if result.global_zero:
        write_json(folder.result, result.to_dict())
    return result


def _start(recipe: Recipe, *, spec: ClipSpec | None, labels: tuple[str, ...], going_on: bool) -> tuple[Recognizer, Start | None]:
    """Build the recipe's model with its first weights, and return what it took of a checkpoint.

    Args:
        recipe: What is trained.
        spec: The clip of a run that is resumed; None for a new one.
        labels: What is to be recognised.
        going_on: Whether a kept state brings the weights.
    """
    source = load_checkpoint(recipe.start_from) if recipe.start_from and not going_on else None
    model = _model(recipe, spec=spec or _spec(recipe, source), classes=len(labels), images=not going_on and source is None)
    return model, source and start_from(model, source, path=str(recipe.start_from), labels=labels)


def _spec(recipe: Recipe, source: Checkpoint | None = None) -> ClipSpec:
    """Return the recipe's clip, its pixels normalised as the weights that it starts from expect."""
    if source is not None:
        return replace(recipe.spec, mean=source.spec.mean, std=source.spec.std)
    expected = normalisation(recipe.model, recipe.weights) if recipe.pretrained or recipe.pretrained_path else None
    return recipe.spec if expected is None else replace(recipe.spec, mean=expected[0], std=expected[1])


def _model(recipe: Recipe, *, spec: ClipSpec, classes: int, images: bool) -> Recognizer:
    """Build the recipe's model; what is resumed, or starts from a checkpoint, needs no weights of images."""
    model = build_model(
        recipe.model,
        classes=classes,
        spec=spec,
        width=recipe.width,
        dropout=recipe.dropout,
        pretrained=images and recipe.pretrained and (recipe.weights or True),
        pretrained_path=recipe.pretrained_path if images else None,
        blocks=recipe.blocks,
        **recipe.options.of_the_model,
    )
    if recipe.head_std:
        start_heads(model.heads, std=recipe.head_std)
    return model


def _run(trainer: pl.Trainer, module: TrainingModule, keep: KeepRun, *, resume: bool) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=keep.folder.state if resume else None, weights_only=True if resume else None)
    except SystemExit:
        # Lightning's answer to Ctrl-C; it also switches Ctrl-C off.
        if trainer.interrupted:
            _await_others(trainer)
            if trainer.is_global_zero:
                _say_how_to_resume(module, keep)
            raise KeyboardInterrupt from None
        raise
    except FlowlessError:
        _await_others(trainer)
        raise
    finally:
        signal.signal(signal.SIGINT, handler)


def _await_others(trainer: pl.Trainer) -> None:
    """Wait until the processes that Lightning started here have ended for the same reason.

    Lightning watches them, and kills this one where one of them ends before it; the list of them is what it watches.
    """
    processes: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    others = processes[:]
    processes.clear()
    for other in others:
        try:
            other.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            other.kill()


def _say_how_to_resume(module: TrainingModule, keep: KeepRun) -> None:
    path, epochs, batches = keep.folder.path, len(module.rows), keep.kept_batches
    if not keep.folder.kept:
        log.print(f"flowless: stopped; nothing is kept yet. The same command and --resume starts {path} at its first step.", style="yellow")
        return
    kept = f"{epochs} whole epoch{'' if epochs == 1 else 's'}" + (f" and {batches} batches of the next one" if batches else "")
    verb = "is" if (epochs, batches) == (1, 0) else "are"
    log.print(f"flowless: stopped; {kept} {verb} kept in {path}. Go on with the same command and --resume.", style="yellow")


def _trainer(recipe: Recipe, folder: RunFolder, *, keep: KeepRun, validate: bool) -> pl.Trainer:
    devices: Any = recipe.devices
    if devices != "auto":
        devices = [int(part) for part in devices.split(",")] if "," in devices else int(devices)
    return pl.Trainer(
        accelerator=recipe.accelerator,
        devices=devices,
        num_nodes=recipe.num_nodes,
        precision=_PRECISION[recipe.precision],
        max_epochs=recipe.epochs,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip_gradient or None,
        check_val_every_n_epoch=recipe.validate_every,
        limit_val_batches=1.0 if validate else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=TensorBoardLogger(folder.path, name="", version="tensorboard", default_hp_metric=False),
        callbacks=[keep, _Bar()],
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=True,
    )


def _check_videos(index: DatasetIndex, recipe: Recipe) -> None:
    check_training_index(index, batch_size=recipe.batch_size)
    check_views(index, recipe)
    warn_of_short_videos(index, recipe.spec, rule=recipe.training_rule)


def _check_machine(recipe: Recipe) -> None:
    gpu = torch.cuda.is_available() and recipe.accelerator != "cpu"
    if recipe.precision == "fp16" and not gpu:
        raise FlowlessError("precision is fp16, which trains on a GPU only. Take --precision bf16, or fp32.")
    if recipe.devices != "auto" and not all(part.strip().isdigit() for part in recipe.devices.split(",")):
        raise FlowlessError(f"devices is {recipe.devices!r}; it must be auto, a number such as 2, or a list such as 0,1.")
    if recipe.accelerator not in {"auto", "cpu", "gpu", "cuda"}:
        raise FlowlessError(f"accelerator is {recipe.accelerator!r}; it must be auto, cpu or gpu.")
    if recipe.accelerator in {"gpu", "cuda"} and not torch.cuda.is_available():
        raise FlowlessError(
            f"accelerator is {recipe.accelerator}, but PyTorch sees no GPU here. Take --accelerator cpu; see: flowless doctor."
        )


def _result(module: TrainingModule, folder: RunFolder, *, seconds: float, global_zero: bool) -> FitResult:
    best = best_row(module.rows)
    return FitResult(
        folder=folder.path,
        best=folder.best,
        last=folder.last,
        rows=module.rows,
        best_epoch=best["epoch"],
        best_top1=best["val_top1"],
        seconds=seconds,
        bad_videos=module.bad_videos(),
        global_zero=global_zero,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advertisements and notes to developers from the user's terminal."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", module="torch.distributed")
            yield
    finally:
        logger.setLevel(level)


class _Bar(Callback):
    """One progress bar for the whole run."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
        if self._progress is not None:
            self._progress.advance(self._task)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=f"{trainer.current_epoch + 1} of {trainer.max_epochs} epochs")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

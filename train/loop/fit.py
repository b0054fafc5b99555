"""Train a recipe on an index, from the first epoch or resumed from a saved state."""

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
from lightning.pytorch.loggers import TensorBoardLogger

from flowless.console import log
from flowless.errors import FlowlessError
from flowless.files import write_json
from flowless.interrupts import StopRequest
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex, Refused
from flowless.train.checkpoints.checkpoint import Checkpoint, load_checkpoint
from flowless.train.checkpoints.transfer import WeightTransfer, transfer_weights
from flowless.train.loop.index_checks import (
    check_training_index,
    check_twins_differ,
    check_validation_shares,
    relabel,
    warn_of_short_videos,
)
from flowless.train.loop.loaders import device_batch
from flowless.train.loop.progress_bar import ProgressBar
from flowless.train.loop.run_folder import RunFolder
from flowless.train.loop.save_callback import SaveCallback, best_row
from flowless.train.loop.training_module import TrainingModule
from flowless.train.models import Recognizer, build_model
from flowless.train.models.backbones.timm_backbones import normalisation
from flowless.train.models.layers.heads import init_heads
from flowless.train.recipes import Recipe

_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
#: Printed at Ctrl-C.
_STOPPING = "flowless: stopping after this step, or after this validation, so that nothing is lost. Ctrl-C again stops at once."
#: Seconds to wait for the processes that Lightning started to end by themselves.
_WAIT_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The files and figures of a training run."""

    folder: Path
    best: Path
    """Checkpoint of the epoch with the best validation (the last epoch without validation)."""
    last: Path
    """Checkpoint of the last epoch."""
    rows: list[dict[str, Any]]
    """One dictionary per epoch, as in metrics.csv."""
    best_epoch: int
    """Counted from 0."""
    best_top1: float | None
    """Validation top-1 of the best epoch; None without validation."""
    seconds: float
    """Wall time of this call, in seconds; a resumed run's earlier time is not included."""
    bad_videos: list[Refused] = field(default_factory=list)
    """Videos that could not be read, with the reason."""
    global_zero: bool = True
    """Whether this process has global rank 0, over all nodes: it alone writes files and prints."""

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

    The state is saved every few minutes, at the end of every epoch and at Ctrl-C. A run that was stopped or killed is resumed from
    there, and gives the same numbers as without the interruption.

    Args:
        recipe: What to train and how.
        index: Training videos.
        val_index: Validation videos; their labels must be among the training labels.
        out: The run's folder.
        resume: Continue the run in `out`.
        overwrite: Replace the run in `out`.

    Raises:
        FlowlessError: The indexes do not fit each other or the recipe, `out` holds other files, too many videos cannot be
            read, or training diverges.
    """
    folder = RunFolder(Path(out))
    _check_videos(index, recipe)
    if val_index is not None:
        val_index = relabel(val_index, index.labels)
    _check_machine(recipe)
    has_state = resume and folder.has_state
    stop = StopRequest(_STOPPING)
    with _lightning_notes_hidden():
        # The trainer and the model are made before the folder: only Lightning finds out which of the processes that torchrun, SLURM, MPI
        # or DDP started has global rank 0, and a model that cannot be built must not leave a folder that looks like a run.
        save = SaveCallback(folder, labels=index.labels, stop=stop)
        trainer = _trainer(recipe, folder, save=save, validate=val_index is not None)
        device_batch(recipe, trainer.world_size)
        if val_index is not None:
            check_validation_shares(val_index, trainer.world_size)
        torch.manual_seed(recipe.seed)
        if resume and trainer.is_global_zero:
            folder.check_resumable(recipe, index)
            if not has_state:
                log.print(f"flowless: {folder.path} has no saved state yet; it starts at its first step.", style="yellow", markup=False)
        recipe, spec = folder.with_initial_weights(recipe) if resume else (recipe, None)
        model, transfer = _initial_model(recipe, spec=spec, labels=index.labels, has_state=has_state)
        if trainer.is_global_zero and not resume:
            folder.begin(recipe, index, val_index=val_index, overwrite=overwrite, spec=model.spec, transfer=transfer)
        module = TrainingModule(model, recipe, index=index, val_index=val_index)
        start = time.perf_counter()
        with stop.noted():
            _run(trainer, module, save, resume=has_state)
    result = _result(module, folder, seconds=time.perf_counter() - start, global_zero=trainer.is_global_zero)
    if result.global_zero:
        write_json(folder.result, result.to_dict())
    return result


def _initial_model(
    recipe: Recipe, *, spec: ClipSpec | None, labels: tuple[str, ...], has_state: bool
) -> tuple[Recognizer, WeightTransfer | None]:
    """Build the recipe's model with its initial weights, and return which of them came from a checkpoint.

    Args:
        recipe: What is trained.
        spec: The clip of the run that is resumed; None for a new run.
        labels: The labels to be learnt.
        has_state: Whether a saved state will replace the weights, so that none need to be loaded here.
    """
    source = load_checkpoint(recipe.start_from) if recipe.start_from and not has_state else None
    model = _model(recipe, spec=spec or initial_spec(recipe, source), classes=len(labels), imagenet=not has_state and source is None)
    return model, source and transfer_weights(model, source, path=str(recipe.start_from), labels=labels)


def initial_spec(recipe: Recipe, source: Checkpoint | None = None) -> ClipSpec:
    """Return the recipe's clip, with the pixel normalisation that its initial weights were trained with."""
    if source is not None:
        return replace(recipe.spec, mean=source.spec.mean, std=source.spec.std)
    expected = normalisation(recipe.model, recipe.weights) if recipe.pretrained or recipe.pretrained_path else None
    return recipe.spec if expected is None else replace(recipe.spec, mean=expected[0], std=expected[1])


def _model(recipe: Recipe, *, spec: ClipSpec, classes: int, imagenet: bool) -> Recognizer:
    """Build the recipe's model, with `imagenet` from the ImageNet weights that the recipe names, if any."""
    model = build_model(
        recipe.model,
        classes=classes,
        spec=spec,
        width=recipe.width,
        dropout=recipe.dropout,
        pretrained=imagenet and recipe.pretrained and (recipe.weights or True),
        pretrained_path=recipe.pretrained_path if imagenet else None,
        blocks=recipe.blocks,
        **recipe.options.model_options,
    )
    if recipe.head_std:
        init_heads(model.heads, std=recipe.head_std)
    return model


def _run(trainer: pl.Trainer, module: TrainingModule, save: SaveCallback, *, resume: bool) -> None:
    """Train; Ctrl-C ends in KeyboardInterrupt, after a message how to resume."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=save.folder.state if resume else None, weights_only=True if resume else None)
    except SystemExit:
        # Lightning turns KeyboardInterrupt into SystemExit; it also replaces the handler of Ctrl-C.
        if trainer.interrupted:
            _wait_for_started_processes(trainer)
            if trainer.is_global_zero:
                _print_how_to_resume(module, save)
            raise KeyboardInterrupt from None
        raise
    except FlowlessError:
        _wait_for_started_processes(trainer)
        raise
    finally:
        signal.signal(signal.SIGINT, handler)


def _wait_for_started_processes(trainer: pl.Trainer) -> None:
    """Wait until the processes that Lightning started have ended; they stop for the same reason as this one.

    Lightning watches its list of them and kills this process when one of them ends first, so the list is emptied before.
    """
    processes: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    others = processes[:]
    processes.clear()
    for other in others:
        try:
            other.wait(_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            other.kill()


def _print_how_to_resume(module: TrainingModule, save: SaveCallback) -> None:
    path, epochs, batches = save.folder.path, len(module.rows), save.saved_batches
    if not save.folder.has_state:
        log.print(
            f"flowless: stopped; nothing is saved yet. The same command with --resume starts {path} at its first step.",
            style="yellow",
            markup=False,
        )
        return
    saved = f"{epochs} whole epoch{'' if epochs == 1 else 's'}" + (f" and {batches} batches of the next one" if batches else "")
    verb = "is" if (epochs, batches) == (1, 0) else "are"
    log.print(
        f"flowless: stopped; {saved} {verb} saved in {path}. Continue with the same command and --resume.", style="yellow", markup=False
    )


def _trainer(recipe: Recipe, folder: RunFolder, *, save: SaveCallback, validate: bool) -> pl.Trainer:
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
        callbacks=[save, ProgressBar()],
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=True,
    )


def _check_videos(index: DatasetIndex, recipe: Recipe) -> None:
    check_training_index(index, batch_size=recipe.batch_size)
    check_twins_differ(index, recipe)
    warn_of_short_videos(index, recipe.spec, rule=recipe.training_rule)


def _check_machine(recipe: Recipe) -> None:
    gpu = torch.cuda.is_available() and recipe.accelerator != "cpu"
    if recipe.precision == "fp16" and not gpu:
        raise FlowlessError("precision is fp16, which trains on a GPU only. Take --precision bf16 or fp32.")
    if recipe.devices != "auto" and not all(part.strip().isdigit() for part in recipe.devices.split(",")):
        raise FlowlessError(f"devices is {recipe.devices!r}; it must be auto, a number such as 2, or a list such as 0,1.")
    if recipe.accelerator not in {"auto", "cpu", "gpu", "cuda"}:
        raise FlowlessError(f"accelerator is {recipe.accelerator!r}; it must be auto, cpu or gpu.")
    if recipe.accelerator in {"gpu", "cuda"} and not torch.cuda.is_available():
        raise FlowlessError(
            f"accelerator is {recipe.accelerator}, but PyTorch finds no GPU here. Take --accelerator cpu; see: flowless doctor."
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
def _lightning_notes_hidden() -> Iterator[None]:
    """Hide Lightning's log below warnings, and its Python warnings, which are for developers."""
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

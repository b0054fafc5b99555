"""The Lightning module: the training step, the validation step, and the figures of an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowless.errors import FlowlessError
from flowless.pipeline.dataset.index import DatasetIndex, Refused
from flowless.train.loop.joint_training import joint_training
from flowless.train.loop.loaders import EpochBatches, LoaderPlacement, evaluation_loader, training_loader
from flowless.train.loop.objectives import objective_of
from flowless.train.loop.optimizer import build_optimizer, freeze_batch_norm, norms_to_freeze, set_rate
from flowless.train.loop.processes import Processes
from flowless.train.models import Recognizer
from flowless.train.models.backbones.timm_backbones import to_channels_last
from flowless.train.recipes import Recipe

if TYPE_CHECKING:
    from flowless.pipeline.loading.loader import Batch


class TrainingModule(pl.LightningModule):
    """A recogniser with its recipe and its videos.

    Attributes:
        rows: One dictionary per epoch: epoch, train_loss, train_top1, val_loss, val_top1, lr, seconds.
        processes: The processes that train together.
        request: Returns this process's request of all processes; called before every training batch. The callback that saves the state
            sets it.
        agreed_request: The largest request of all processes before the newest batch.
        first_batch: The batch of its epoch that a resumed training begins with.
    """

    def __init__(self, model: Recognizer, recipe: Recipe, *, index: DatasetIndex, val_index: DatasetIndex | None) -> None:
        super().__init__()
        self.model: Recognizer = to_channels_last(model)  # type: ignore[assignment]
        self.recipe = recipe
        self.index = index
        self.val_index = val_index
        self.joint = joint_training(model, recipe)
        self.rows: list[dict[str, Any]] = []
        self.processes = Processes()
        self.request: Callable[[], int] = lambda: 0
        self.agreed_request = 0
        self.first_batch = 0
        self._objective = objective_of(recipe)
        self._loaders: list[EpochBatches] = []
        self._validation: EpochBatches | None = None
        self._bad_before: list[Refused] = []
        self._resumed: dict[str, Any] | None = None
        self._sums = {"train": _Sums(), "val": _Sums()}
        self._started = 0.0
        # Decided once, here: a norm without statistics at the start trains to the end of the run, also after a resume.
        self._frozen = [norms_to_freeze(part) if recipe.partial_bn else [] for part in self.model.parts]
        self._freeze()

    def train(self, mode: bool = True) -> TrainingModule:
        """Switch to training or evaluation; frozen batch norms stay in evaluation."""
        super().train(mode)
        if mode:
            self._freeze()
        return self

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the recipe's optimiser over the parameter groups of every network or branch."""
        first, *others = (build_optimizer(part, self.recipe) for part in self.model.parts)
        for group in (group for other in others for group in other.param_groups):
            first.add_param_group(group)
        return first

    def train_dataloader(self) -> EpochBatches:
        """Return this process's share of the training batches."""
        loader = training_loader(self.index, self.recipe, placement=self._placement())
        if not len(loader):
            raise FlowlessError(f"training has {len(self.index.videos)} videos, fewer than one batch of {self.recipe.batch_size}.")

        def on_agreed(request: int) -> None:
            self.agreed_request = request

        def current_request() -> int:
            return self.request()  # looked up at every call: the callback sets it after the loader is made

        batches = EpochBatches(loader, processes=self.processes, start=self._begin_epoch, request=current_request, on_agreed=on_agreed)
        self._loaders.append(batches)
        return batches

    def val_dataloader(self) -> EpochBatches | list[EpochBatches]:
        """Return this process's share of the validation batches: one clip per video, from its middle."""
        if self.val_index is None:
            return []
        loader = evaluation_loader(
            self.val_index,
            self.recipe.spec,
            rule=self.recipe.validation_rule,
            batch_size=max(1, self.recipe.batch_size // self.recipe.accumulate),
            threads=self.recipe.threads,
            placement=self._placement(),
        )
        self._validation = EpochBatches(loader, processes=self.processes, start=lambda: (0, 0))
        self._loaders.append(self._validation)
        return self._validation

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of uint8 clips `[B, draws, N, m, H, W, 3]`: the sum of every network's own loss.

        In the sum each network has the gradient that it would have if it were trained alone (but the gradient's norm is clipped over all
        networks together). The loss in the log is the mean. A second loss (`JointTraining`) accumulates its gradient separately until the
        optimiser's step.
        """
        # All augmentations of a clip go through the network in one batch, so that batch norm sees them together.
        labels = batch.labels.flatten()
        source = self.joint or self.model
        branches = source.branch_scores(batch.clips.flatten(0, 1)).float()
        losses = [self._objective(scores, labels) for scores in branches]
        loss = torch.stack(losses).sum()
        self._sums["train"].add(loss / len(losses), self.model.fused(branches), labels)
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set this step's learning rate and random seed. Both depend on the step alone, so a resume needs no state of them."""
        seeds = np.random.SeedSequence([self.recipe.seed, self.current_epoch, batch_idx, self.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(seeds[0]))
        set_rate(self.optimizers().optimizer, self.recipe.rate_at(self._epochs_done()))  # type: ignore[union-attr]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Mix the gradients of two losses where there are two; at every 10th step, stop if training has diverged."""
        if self.joint is not None:
            steps = self._steps_an_epoch() * self.recipe.epochs
            self.joint.mix(step=self.trainer.global_step + 1, steps=steps, reduce=self._mean_over_processes)
        if self.trainer.global_step % 10 == 0:
            self._refuse_divergence()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch of validation videos to the epoch's figures."""
        scores = self.model(batch.clips.squeeze(1)).float()
        self._sums["val"].add(F.cross_entropy(scores, batch.labels), scores, batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Stop all processes if validation has failed in one."""
        self.processes.agree(self._validation.failed if self._validation is not None else None)

    def on_train_epoch_end(self) -> None:
        """Sum the epoch's figures over all processes; log them."""
        self._refuse_divergence()
        row: dict[str, Any] = {"epoch": self.current_epoch}
        for part in ("train", "val"):
            loss, right, count = self._reduced(self._sums[part])
            row[f"{part}_loss"] = loss / count if count else None
            row[f"{part}_top1"] = right / count if count else None
            self._sums[part] = _Sums()
        row["lr"] = self.optimizers().param_groups[0]["lr"] / self.optimizers().param_groups[0]["lr_factor"]  # type: ignore[union-attr]
        row["seconds"] = time.perf_counter() - self._started
        self.rows.append(row)
        shown = {name: float(value) for name, value in row.items() if name != "epoch" and value is not None}
        shown |= self.joint.means() if self.joint is not None else {}
        for logger in self.loggers:
            logger.log_metrics(shown, step=row["epoch"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the history with the state, so that a resumed run's log is complete."""
        checkpoint["flowless_rows"] = self.rows
        checkpoint["flowless_frozen"] = self._frozen
        checkpoint["flowless_bad_videos"] = [(bad.path, bad.reason) for bad in self.bad_videos()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history, and for a state saved within an epoch, the epoch so far."""
        self.rows = list(checkpoint["flowless_rows"])
        if self.recipe.partial_bn:
            # Earlier versions froze all norms but the first, and did not save which.
            all_but_first = [norms_to_freeze(part, with_statistics=False) for part in self.model.parts]
            self._frozen = checkpoint.get("flowless_frozen", all_but_first)
            self._freeze()
        self._bad_before = [Refused(path=path, reason=reason) for path, reason in checkpoint.get("flowless_bad_videos", ())]
        self._resumed = checkpoint.get("flowless_epoch")
        self.first_batch = self._resumed["batches"] if self._resumed else 0

    def epoch_so_far(self, batches: int) -> dict[str, Any]:
        """Return what has to be saved of an unfinished epoch beside weights and optimiser, summed over all processes.

        Every process has to call it. `on_load_checkpoint` reads it under the key `flowless_epoch`.

        Args:
            batches: Batches that this process has done; the last of them ended a step of the optimiser.
        """
        return {
            "batches": batches,
            "sums": self._reduced(self._sums["train"]),
            "joint": {} if self.joint is None else self.joint.history(),
            "seconds": time.perf_counter() - self._started,
        }

    def bad_videos(self) -> list[Refused]:
        """Return every video that could not be read, without duplicates."""
        found = {bad.path: bad for bad in self._bad_before}
        found |= {bad.path: bad for loader in self._loaders for bad in loader.source.bad_videos}
        return [found[path] for path in sorted(found)]

    def _freeze(self) -> None:
        """Freeze the batch norms that partial_bn freezes in each network or branch."""
        for part, names in zip(self.model.parts, self._frozen, strict=True):
            freeze_batch_norm(part, names)

    def _begin_epoch(self) -> tuple[int, int]:
        """Return the epoch that begins, and its first batch."""
        epoch, resumed = self.current_epoch, self._resumed
        # The last epoch is always validated.
        self.trainer.check_val_every_n_epoch = 1 if epoch + 1 == self.recipe.epochs else self.recipe.validate_every
        self._started = time.perf_counter()
        if resumed is None:
            return epoch, 0
        self._resumed = None
        self._started -= resumed["seconds"]
        # The saved sums are those of all processes together, so one process takes them.
        if self.trainer.is_global_zero:
            self._sums["train"] = _Sums(*resumed["sums"])
            if self.joint is not None:
                self.joint.restore(resumed["joint"])
        return epoch, resumed["batches"]

    def _refuse_divergence(self) -> None:
        """Stop all processes if the loss of one is NaN or infinite."""
        error = None
        if not bool(torch.isfinite(self._sums["train"].loss)):
            saved = "The last good epoch is saved" if self.rows else "No epoch is saved yet"
            error = FlowlessError(
                f"epoch {self.current_epoch}: the loss is NaN or infinite; training has diverged. Lower --lr (it is {self.recipe.lr:g} "
                f"for a batch of {self.recipe.lr_batch}), or clip the gradient harder with --clip-gradient. {saved}."
            )
        self.processes.agree(error)

    def _epochs_done(self) -> float:
        return self.trainer.global_step / self._steps_an_epoch()

    def _steps_an_epoch(self) -> int:
        # The last batches of an epoch end in a step even if they are fewer than `accumulate`.
        return math.ceil(self.trainer.num_training_batches / self.recipe.accumulate)

    def _mean_over_processes(self, gradient: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(gradient, reduce_op="mean")  # type: ignore[return-value]

    def _placement(self) -> LoaderPlacement:
        gpu = self.device.index or 0 if self.device.type == "cuda" else None
        return LoaderPlacement(rank=self.global_rank, world=self.trainer.world_size, gpu=gpu)

    def _reduced(self, sums: _Sums) -> tuple[float, float, float]:
        total = torch.stack([sums.loss, sums.right, sums.count]).to(self.device)
        loss, right, count = self.trainer.strategy.reduce(total, reduce_op="sum").tolist()
        return loss, right, count


class _Sums:
    """Sums over the batches of an epoch, on the device until its end."""

    def __init__(self, loss: float = 0, right: float = 0, count: float = 0) -> None:
        self.loss, self.right, self.count = (torch.tensor(value, dtype=torch.float64) for value in (loss, right, count))

    def add(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        self.loss = self.loss.to(loss.device) + loss.detach().double() * len(labels)
        self.right = self.right.to(loss.device) + (scores.detach().argmax(1) == labels).sum()
        self.count = self.count.to(loss.device) + len(labels)

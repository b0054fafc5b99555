"""The fields of every recipe: epochs, optimiser, learning rates, objective, and where it runs. No heavy library is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

#: The objective that training minimises.
ObjectiveName = Literal["scores", "twins"]


@dataclass(frozen=True, kw_only=True)
class TrainingFields:
    """The settings of every training.

    The defaults are the official code's for PAN-Lite: SGD, momentum 0.9, weight decay 1e-4, learning rate 0.01 for a batch of 64,
    divided by 10 at epochs 30 and 60 of 80.
    """

    epochs: int = 80
    """Number of epochs: times that training sees every video."""
    batch_size: int = 64
    """Clips in one step of the optimiser, over all devices and accumulated batches."""
    accumulate: int = 1
    """Number of batches whose gradients are accumulated for one step; a larger number needs less memory for the same batch_size."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """sgd, as in the papers; adamw trains small networks from scratch in fewer epochs."""
    lr: float = 0.01
    """Peak learning rate for a batch of lr_batch clips; it is scaled linearly with batch_size."""
    lr_batch: int = 64
    """The batch size that lr is given for."""
    momentum: float = 0.9
    """Momentum of SGD; beta 1 of AdamW."""
    weight_decay: float = 1e-4
    """Weight decay of convolutions and linear layers (never of biases and batch norm)."""
    schedule: Literal["steps", "one-cycle", "cosine"] = "steps"
    """Learning-rate schedule. steps: multiply by step_factor at the epochs of `steps`; one-cycle: rise along a cosine to lr during warm_up,
    then fall along a cosine to nearly 0; cosine: the same with a linear rise."""
    steps: tuple[int, ...] = (30, 60)
    """With schedule steps: epochs at which the learning rate is multiplied by step_factor."""
    step_factor: float = 0.1
    """With schedule steps: the factor."""
    warm_up: float = 0.3
    """With schedule one-cycle or cosine: fraction of the training in which the learning rate rises; 0 starts at lr."""
    layer_rates: bool = True
    """Use the official code's learning rates by layer: 5 times lr for PA's filters and linear layers, 10 times for their biases."""
    head_decay: float = 1.0
    """Factor on the weight decay of the linear layers after the backbone."""
    clip_gradient: float = 20.0
    """Largest norm of the gradient, which is scaled down to it; 0 is off."""
    objective: ObjectiveName = "scores"
    """scores: cross entropy. twins: Twins Training, which adds a loss that pulls the scores of two augmentations of each clip together; a
    step takes the memory and time of twice the batch. twins also changes defaults to the paper's augmentation: colour_jitter to 0.4, grey
    to 0.2, and scales of only 1.0 to 1.0 and 0.875."""
    twins_lambda: float = 0.01
    """With objective twins: weight of the correlation loss beside the cross entropy."""
    twins_beta: float = 0.0039
    """With objective twins: weight, in the correlation loss, of pairs of different classes."""
    label_smoothing: float = 0.0
    """Label smoothing: fraction of the target that is spread over all classes."""
    partial_bn: bool = False
    """Freeze every batch norm but the first."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network: fp32, or mixed precision with bf16 or fp16 (fp16 on a GPU only). PA itself stays in fp32."""
    seed: int = 0
    """Random seed of the initial weights, the order of videos, the frames and crops taken, and dropout."""
    threads: int | None = None
    """Threads that decode; default: one per processor core."""
    max_bad_share: float = 0.05
    """Training stops when more than this fraction of the videos cannot be read."""
    keep_every: float = 10.0
    """Minutes between saved states within an epoch, for --resume; 0 saves after every step. The state is always saved after an epoch."""
    validate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu or gpu."""
    devices: str = "auto"
    """Lightning's devices: auto, a number such as 2, or a list such as 0,1."""
    num_nodes: int = 1
    """Number of machines that train together."""

    @property
    def draws(self) -> int:
        """Number of augmentations of each clip in one step."""
        return 2 if self.objective == "twins" else 1

    @property
    def peak_rate(self) -> float:
        """The highest learning rate of the schedule, scaled to the batch size."""
        return self.lr * self.batch_size / self.lr_batch

    def rate_at(self, epoch: float) -> float:
        """Return the learning rate after `epoch` epochs, which may be a fraction, before the factors by layer."""
        if self.schedule == "steps":
            return self.peak_rate * self.step_factor ** sum(epoch >= step for step in self.steps)
        done = min(1.0, epoch / self.epochs)
        if done < self.warm_up and self.schedule == "cosine":
            return self.peak_rate * (1 + 24 * done / self.warm_up) / 25
        if done < self.warm_up:
            return _cosine(self.peak_rate / 25, self.peak_rate, done / self.warm_up)
        return _cosine(self.peak_rate, self.peak_rate / 25e4, (done - self.warm_up) / (1 - self.warm_up))


def _cosine(start: float, end: float, share: float) -> float:
    """Return the value at a share of the way along a half cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

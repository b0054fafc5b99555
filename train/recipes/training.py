"""What every training has: epochs, optimiser, rates, objective, and where it runs. No heavy library is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

#: What training minimises.
ObjectiveName = Literal["scores", "twins"]


@dataclass(frozen=True, kw_only=True)
class TrainingFields:
    """How any model is trained.

    The defaults are the official code's for PAN-Lite: SGD, momentum 0.9, weight decay 1e-4, rate 0.01 for a batch of 64,
    divided by 10 at epochs 30 and 60 of 80.
    """

    epochs: int = 80
    """Times that training sees every video."""
    batch_size: int = 64
    """Clips in one step of the optimiser, over all devices and accumulated batches."""
    accumulate: int = 1
    """Batches that make one step: more of them need less memory for the same batch_size."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """sgd, as in the papers; adamw learns small networks from scratch in fewer epochs."""
    lr: float = 0.01
    """Learning rate for a batch of lr_batch clips; scaled linearly with batch_size."""
    lr_batch: int = 64
    """The batch size that lr is meant for."""
    momentum: float = 0.9
    """Momentum of SGD; the first moment's decay of AdamW."""
    weight_decay: float = 1e-4
    """Weight decay of convolutions and linear layers (never of biases and batch norm)."""
    schedule: Literal["steps", "one-cycle", "cosine"] = "steps"
    """steps: divide the rate at epochs; one-cycle: rise to lr in warm_up of the time, then fall to nothing; cosine: the same,
    rising in a straight line."""
    steps: tuple[int, ...] = (30, 60)
    """Epochs at which the schedule `steps` multiplies the rate with step_factor."""
    step_factor: float = 0.1
    """What `steps` multiplies with."""
    warm_up: float = 0.3
    """Share of the time in which `one-cycle` and `cosine` rise; 0 starts at lr."""
    layer_rates: bool = True
    """The official rates by layer: 5 times lr for PA's filters and linear layers, 10 times for their biases."""
    head_decay: float = 1.0
    """Factor on the weight decay of the linear layers behind the backbone."""
    clip_gradient: float = 20.0
    """Largest norm of the gradient; 0 switches clipping off."""
    objective: ObjectiveName = "scores"
    """scores: cross entropy. twins: Twins Training, two augmentations of each clip at once, whose scores also have to agree; a
    step takes the memory and time of twice the batch. It brings the paper's augmentation: where they are not given, colour_jitter
    becomes 0.4, grey 0.2, and scales of 1.0 alone 1.0 and 0.875."""
    twins_lambda: float = 0.01
    """Twins: weight of the correlation loss beside the cross entropy."""
    twins_beta: float = 0.0039
    """Twins: weight of pairs of different classes in the correlation loss."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    partial_bn: bool = False
    """Freeze every batch norm but the first."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network: fp32, or mixed bf16 or fp16 (fp16 on a GPU only). PA itself stays in fp32."""
    seed: int = 0
    """Fixes the first weights, the order of videos, the frames and crops taken, and dropout."""
    threads: int | None = None
    """Threads that decode; by default one a processor core."""
    max_bad_share: float = 0.05
    """Training stops when more than this share of the videos cannot be read."""
    keep_every: float = 10.0
    """Minutes after which the state to resume from is kept within an epoch; 0 keeps it after every step. It is kept after every epoch
    anyway."""
    validate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    devices: str = "auto"
    """Lightning's devices: auto, a number, or a list such as 0,1."""
    num_nodes: int = 1
    """Machines that train together."""

    @property
    def draws(self) -> int:
        """How often training augments each clip in one step."""
        return 2 if self.objective == "twins" else 1

    @property
    def peak_rate(self) -> float:
        """The learning rate at its highest, scaled to the batch."""
        return self.lr * self.batch_size / self.lr_batch

    def rate_at(self, epoch: float) -> float:
        """Return the learning rate after `epoch` epochs, a fraction counted (before the factors by layer)."""
        if self.schedule == "steps":
            return self.peak_rate * self.step_factor ** sum(epoch >= step for step in self.steps)
        done = min(1.0, epoch / self.epochs)
        if done < self.warm_up and self.schedule == "cosine":
            return self.peak_rate * (1 + 24 * done / self.warm_up) / 25
        if done < self.warm_up:
            return _cosine(self.peak_rate / 25, self.peak_rate, done / self.warm_up)
        return _cosine(self.peak_rate, self.peak_rate / 25e4, (done - self.warm_up) / (1 - self.warm_up))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

"""Transfer weights from a checkpoint of flowless into a model that is to be trained, and report which tensors fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flowless.errors import FlowlessError
from flowless.train.checkpoints.checkpoint import Checkpoint
from flowless.train.models import Recognizer

#: A checkpoint must provide at least this share of the model's tensors; with less it is a checkpoint of another network.
_MIN_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class WeightTransfer:
    """Which tensors of a model were taken from a checkpoint, by name."""

    checkpoint: str
    """The file."""
    model: str
    """The name of the checkpoint's model."""
    taken: tuple[str, ...]
    """Taken from the checkpoint."""
    new: tuple[str, ...]
    """Only in the model: randomly initialised."""
    other_shape: tuple[str, ...]
    """In both, with different shapes: randomly initialised."""
    unused: tuple[str, ...]
    """Only in the checkpoint."""
    classifier: tuple[str, ...]
    """The last layers, randomly initialised because the labels differ; empty where the labels are the same, in the same order."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        """Return a summary of a few lines, with the first names of each kind."""
        total = len(self.taken) + len(self.new) + len(self.other_shape) + len(self.classifier)
        lines = [f"from {self.checkpoint} ({self.model}): {len(self.taken)} of {total} tensors are taken"]
        for what, names in (
            ("new classifier, because the labels differ", self.classifier),
            ("new, because the checkpoint lacks them", self.new),
            ("new, because the checkpoint's have another shape", self.other_shape),
            ("unused, because only the checkpoint has them", self.unused),
        ):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                lines.append(f"  {what}: {', '.join(names[:5])}{more}")
        return "\n".join(lines)


def transfer_weights(model: Recognizer, source: Checkpoint, *, path: str | Path, labels: Sequence[str]) -> WeightTransfer:
    """Copy into a model every tensor of a checkpoint that fits by name and shape, batch norm's statistics included.

    Args:
        model: The model to be trained; it should normalise pixels as the checkpoint's model does, whose weights expect that.
        source: A checkpoint that `flowless train`, `fuse` or `import` wrote.
        path: Its file, for messages.
        labels: The labels to be learnt; if the checkpoint's are others, or in another order, its classifier is left out.

    Raises:
        FlowlessError: The checkpoint holds another network, or has NaN or infinity in its weights.
    """
    given, own = source.model.state_dict(), model.state_dict()
    last_layers = [id(layer) for head in model.heads for name, layer in head.named_modules() if name == "pred"]
    last = {name for name, layer in model.named_modules() if id(layer) in last_layers}
    classifier = [] if source.labels == tuple(labels) else [name for name in own if name.rpartition(".")[0] in last]
    rest = [name for name in own if name not in classifier]
    taken = [name for name in rest if name in given and given[name].shape == own[name].shape]
    if len(taken) < _MIN_SHARE * len(own):
        raise FlowlessError(
            f"{path}: a {source.name}, which provides only {len(taken)} of the {len(own)} tensors of the model to be trained. Start from a "
            f"checkpoint of the same network: the same family, backbone and width."
        )
    broken = [name for name in taken if given[name].is_floating_point() and not bool(torch.isfinite(given[name]).all())]
    if broken:
        raise FlowlessError(f"{path}: {len(broken)} of its tensors hold NaN or infinity, the first {broken[0]}. Take another checkpoint.")
    with torch.no_grad():
        model.load_state_dict({name: given[name] for name in taken}, strict=False)
    return WeightTransfer(
        checkpoint=str(path),
        model=source.name,
        taken=tuple(taken),
        new=tuple(name for name in rest if name not in given),
        other_shape=tuple(name for name in rest if name in given and given[name].shape != own[name].shape),
        unused=tuple(name for name in given if name not in own),
        classifier=tuple(classifier),
    )

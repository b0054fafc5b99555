"""Starting a training from a checkpoint of flowless: what fits is taken, and what did not is listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flowless.errors import FlowlessError
from flowless.train.checkpoints.checkpoint import Checkpoint
from flowless.train.models import Recognizer

#: Least share of a model's tensors that its start has to give; less is another network.
_LEAST = 0.5


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a training took of the checkpoint that it starts from: names of tensors."""

    checkpoint: str
    """The file."""
    model: str
    """The name of its model."""
    taken: tuple[str, ...]
    new: tuple[str, ...]
    """In the model alone: they start as without a checkpoint."""
    other_shape: tuple[str, ...]
    """In both, of different shapes: they start as without a checkpoint."""
    unused: tuple[str, ...]
    """In the checkpoint alone."""
    classifier: tuple[str, ...]
    """The last layers, which are new because the labels differ; empty where the labels are the same, in the same order."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        """Say it in a few lines, with some of the names."""
        total = len(self.taken) + len(self.new) + len(self.other_shape) + len(self.classifier)
        lines = [f"from {self.checkpoint} ({self.model}): {len(self.taken)} of {total} tensors are taken"]
        for what, names in (
            ("the classifier starts anew, since the labels differ", self.classifier),
            ("start anew, since the checkpoint has none", self.new),
            ("start anew, since the checkpoint's have another shape", self.other_shape),
            ("are in the checkpoint alone, and left out", self.unused),
        ):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                lines.append(f"  {what}: {', '.join(names[:5])}{more}")
        return "\n".join(lines)


def start_from(model: Recognizer, source: Checkpoint, *, path: str | Path, labels: Sequence[str]) -> Start:
    """Fill a model with what fits of a checkpoint: weights, batch norm's statistics, PWTP and PA included.

    Args:
        model: What is to be trained; its pixels should be normalised as the checkpoint's, whose weights expect that.
        source: What `flowless train`, `fuse` or `import` wrote.
        path: Its file, for messages.
        labels: The labels to be trained; where the checkpoint's are others, or in another order, its classifier is left out.

    Raises:
        FlowlessError: The checkpoint holds another network, or numbers that are not finite.
    """
    given, own = source.model.state_dict(), model.state_dict()
    heads = [id(layer) for head in model.heads for name, layer in head.named_modules() if name == "pred"]
    last = {name for name, layer in model.named_modules() if id(layer) in heads}
    classifier = [] if source.labels == tuple(labels) else [name for name in own if name.rpartition(".")[0] in last]
    rest = [name for name in own if name not in classifier]
    taken = [name for name in rest if name in given and given[name].shape == own[name].shape]
    if len(taken) < _LEAST * len(own):
        raise FlowlessError(
            f"{path}: a {source.name}, of whose tensors only {len(taken)} fit the {len(own)} of the model to be trained. Start from a "
            f"checkpoint of the same network: the same family, backbone and width."
        )
    broken = [name for name in taken if given[name].is_floating_point() and not bool(torch.isfinite(given[name]).all())]
    if broken:
        raise FlowlessError(f"{path}: {len(broken)} of its tensors hold NaN or infinity, the first {broken[0]}. Take another checkpoint.")
    with torch.no_grad():
        model.load_state_dict({name: given[name] for name in taken}, strict=False)
    return Start(
        checkpoint=str(path),
        model=source.name,
        taken=tuple(taken),
        new=tuple(name for name in rest if name not in given),
        other_shape=tuple(name for name in rest if name in given and given[name].shape != own[name].shape),
        unused=tuple(name for name in given if name not in own),
        classifier=tuple(classifier),
    )

"""Checkpoints: one safetensors file with the weights and, in its header, everything that is needed to use them.

Nothing in a checkpoint is ever unpickled: a safetensors file is a table of tensors and a table of strings.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from flowless import __version__
from flowless.errors import FlowlessError, first_line
from flowless.files import whole_file
from flowless.machine import installed_versions
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import Recognizer, build_model
from flowless.train.models.options import split_options

FORMAT = "flowless-checkpoint"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained model and what it was trained with."""

    model: Recognizer
    """The model, in evaluation mode."""
    name: str
    """Its name for `build_model`."""
    spec: ClipSpec
    labels: tuple[str, ...]
    """Label names in the order of the scores."""
    recipe: dict[str, Any]
    """The recipe's fields."""
    versions: dict[str, str]
    """Versions of Python and of the libraries when the file was written."""
    metrics: dict[str, Any]
    """Epoch and accuracies when the file was written."""


def save_checkpoint(
    path: str | os.PathLike[str],
    model: Recognizer,
    *,
    model_name: str,
    recipe: Mapping[str, Any],
    spec: ClipSpec,
    labels: Sequence[str],
    metrics: Mapping[str, Any],
) -> Path:
    """Write a checkpoint, whole or not at all.

    Args:
        path: The `.safetensors` file.
        model: A model from `build_model`, on any device.
        model_name: Its name.
        recipe: The recipe's fields, plain values.
        spec: The model's clip.
        labels: Label names in the order of the scores.
        metrics: Plain values, such as epoch and val_top1.
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": model_name,
        "config": model.config,
        "recipe": dict(recipe),
        "spec": spec.to_dict(),
        "labels": list(labels),
        "metrics": dict(metrics),
        "versions": versions(),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    data = save(tensors, metadata={"flowless": json.dumps(document, ensure_ascii=False)})
    with whole_file(path) as draft:
        draft.write_bytes(data)
    return Path(path)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint; the model is on the CPU.

    Raises:
        FlowlessError: The file is missing, damaged, or not a checkpoint of flowless.
    """
    source = Path(path)
    document, tensors = _read(source)
    try:
        spec = ClipSpec.from_dict(document["spec"])
        own, rest = split_options(document["model"], document["config"])
        model = build_model(document["model"], spec=spec, **rest, **own)
        labels = tuple(document["labels"])
        rest = {name: document[name] for name in ("recipe", "versions", "metrics")}
        if len(labels) != document["config"]["classes"]:
            raise ValueError(f"{len(labels)} labels for {document['config']['classes']} classes")
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, FlowlessError) as error:
        raise FlowlessError(
            f"{source}: a checkpoint whose contents do not fit together ({first_line(error)}). It was damaged, or written by another "
            f"version of flowless; train again, or use the version that wrote it."
        ) from error
    return Checkpoint(model=model.eval(), name=document["model"], spec=spec, labels=labels, **rest)


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names a checkpoint (a `.safetensors` file) rather than a bundle (a folder)."""
    return Path(path).is_file() or Path(path).suffix == ".safetensors"


def versions() -> dict[str, str]:
    """Return the versions of Python, flowless and the libraries that a model's numbers depend on."""
    libraries = installed_versions(("torch", "timm", "lightning", "safetensors", "numpy"))
    return {"python": platform.python_version(), "flowless": __version__, **libraries}


def _read(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header document and tensors."""
    if source.is_dir():
        if (source / "manifest.json").is_file():
            raise FlowlessError(f"{source}: a bundle, which contains no checkpoint. Give the .safetensors file that it was exported from.")
        raise FlowlessError(f"{source}: a folder, not a checkpoint. Give the file in it: {source / 'best.safetensors'}.")
    try:
        with safe_open(source, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get("flowless")
            if header is None:
                raise FlowlessError(
                    f"{source}: a safetensors file, but not a checkpoint of flowless: its header has no entry 'flowless'. Give a file "
                    f"that `flowless train` wrote, such as best.safetensors in a run's folder."
                )
            document = json.loads(header)
            if not isinstance(document, dict):
                raise ValueError("its header is not a JSON object")
            if document.get("format") != FORMAT or document.get("version") != VERSION:
                raise FlowlessError(
                    f"{source}: a checkpoint of version {document.get('version')!r}; this flowless reads version {VERSION}. Train again, "
                    f"or use the version that wrote it."
                )
            return document, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except FileNotFoundError:
        raise FlowlessError(f"{source}: no such checkpoint. `flowless train` writes best.safetensors and last.safetensors.") from None
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise FlowlessError(
            f"{source}: not a checkpoint of flowless ({first_line(error)}). Give a .safetensors file that `flowless train` wrote."
        ) from error

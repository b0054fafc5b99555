"""Fuse separately trained branches of PAN into one checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flowless.errors import FlowlessError
from flowless.train.checkpoints.checkpoint import Checkpoint, load_checkpoint, versions
from flowless.train.models import build_model


def fuse_checkpoints(
    *,
    rgb: str | os.PathLike[str],
    pa: str | os.PathLike[str],
    lite: str | os.PathLike[str] | None = None,
    weights: Sequence[float] = (),
) -> Checkpoint:
    """Fuse separately trained branches into one model, as the official code fuses their scores.

    Args:
        rgb: Checkpoint of a pan-rgb; its m may differ, since it reads only the first frame of each segment.
        pa: Checkpoint of a pan-pa.
        lite: Checkpoint of a pan-lite; with it the model is PAN-En, without it PAN-Full.
        weights: The weight of each branch's scores, in the order lite (where there is one), rgb, pa; empty: equal weights.

    Returns:
        A checkpoint of pan-full, or with `lite` of pan-en, which is tested on two clips; the labels and the ClipSpec are the PA branch's.

    Raises:
        FlowlessError: A file is not a checkpoint of its branch, the branches do not fit each other, or the weights do not fit them.
    """
    paths = {"lite": lite, "rgb": rgb, "pa": pa}
    parts = {branch: (Path(path), load_checkpoint(path)) for branch, path in paths.items() if path is not None}
    source, base = parts["pa"]
    depth = base.name.rpartition("-")[2]
    for branch, (path, part) in parts.items():
        if part.name.rpartition("-")[0] != f"pan-{branch}":
            raise FlowlessError(f"{path}: a {part.name}; the branch {branch} must be a pan-{branch}. Give a checkpoint of that family.")
    for branch, (path, part) in parts.items():
        wanted = f"pan-{branch}-{depth}"
        differences = _differences(branch, part, base)
        if part.name != wanted:
            differences.insert(0, f"it is a {part.name}, not a {wanted}")
        if differences:
            raise FlowlessError(f"{path}: does not fit {source} ({'; '.join(differences)}). Fused branches must be equal in these.")
    name = f"pan-{'en' if lite is not None else 'full'}-{depth}"
    spec = base.spec if lite is None else replace(base.spec, sampling="two-clip")
    model = build_model(name, spec=spec, **base.model.config, fusion_weights=tuple(weights))
    tensors = {f"branches.{branch}.{key}": value for branch, (_, part) in parts.items() for key, value in part.model.state_dict().items()}
    model.load_state_dict(tensors)
    fused = {branch: {"file": path.name, "metrics": part.metrics, "recipe": part.recipe} for branch, (path, part) in parts.items()}
    return Checkpoint(
        model=model.eval(), name=name, spec=spec, labels=base.labels, recipe={"fused": fused}, versions=versions(), metrics={}
    )


def _differences(branch: str, part: Checkpoint, base: Checkpoint) -> list[str]:
    """Return the differences of a branch from the PA branch that prevent fusing them."""
    found = []
    if part.labels != base.labels:
        found.append(f"its {len(part.labels)} labels are not the same {len(base.labels)} in the same order")
    own, wanted = part.model.config, base.model.config
    if own.get("causal"):
        found.append("it was trained with --causal, and pan-pa, pan-full and pan-en have no causal form")
    compared = [name for name in own if name not in {"dropout", "causal"}]
    found += [f"{name} {own[name]!r} instead of {wanted[name]!r}" for name in compared if own[name] != wanted[name]]
    may_differ = {"frames_per_segment"} if branch == "rgb" else set()
    spec = base.spec.to_dict()
    found += [
        f"{name} {value!r} instead of {spec[name]!r}"
        for name, value in part.spec.to_dict().items()
        if name not in may_differ and value != spec[name]
    ]
    return found

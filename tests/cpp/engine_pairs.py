"""An engine in C++ and the same in Python, frames for both, and a bundle whose clip is changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from c_interface import CEngine, Library

import flowless
from flowless.engines.bundle.manifest import MANIFEST
from flowless.engines.engine import Engine
from flowless.pipeline.clip.preprocess import resize_and_crop
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.view_scores import average_views

#: Nanoseconds.
MS = 1_000_000


def both(library: Library, bundle: Path, target: str = "openvino", precision: str = "fp32") -> tuple[CEngine, Engine]:
    """Open a bundle's engine in C++ and in Python, with one thread."""
    return CEngine(library, bundle, target=target, precision=precision, threads=1), flowless.load(bundle, target, precision, threads=1)


def noise(count: int, *, seed: int = 0, size: tuple[int, int] = (60, 80)) -> list[np.ndarray]:
    """Return frames, uint8 `[*size, 3]`."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8))


def offline(engine: Engine, frames: list[np.ndarray]) -> np.ndarray:
    """Return the scores of a video that consists of these frames."""
    spec = engine.spec
    indices = clip_indices(len(frames), segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    pictures = np.concatenate([resize_and_crop(frame[None], spec) for frame in frames])
    return average_views(engine(pictures[indices]), spec.average)


def changed_copy(bundle: Path, to: Path, **spec: Any) -> Path:
    """Copy a bundle and change its clip, as far as the graph is the same."""
    shutil.copytree(bundle, to)
    document = json.loads((to / MANIFEST).read_text(encoding="utf-8"))
    document["spec"].update(spec)
    (to / MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    return to

"""The bundles of the export tests, and an engine that sees colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_fixtures import built, checkpoint, exported, videos

from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.engine import Engine

__all__ = ["built", "checkpoint", "exported", "videos"]

COLOURS = {"blue": (20, 30, 220), "green": (30, 200, 40), "grey": (120, 120, 120), "red": (220, 30, 20)}


class ColourBackend:
    """Scores a clip by the distance of its mean colour to each of COLOURS, so that what it recognises, and when, is known."""

    device, fallback, gpu = "CPU", None, None

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        means = clip.reshape(len(clip), -1, 3).astype(np.float64).mean(axis=1)
        distances = np.abs(means[:, None] - np.array(list(COLOURS.values()))).mean(axis=2)
        return (-distances / 8).astype(np.float32)

    def on_device(self, clip: Any, stream: int | None) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="session")
def colour_engine(built: Path) -> Engine:
    """An engine whose labels are COLOURS."""
    manifest = replace(read_manifest(built), labels=tuple(COLOURS))
    return Engine(ColourBackend(), manifest=manifest, target="openvino", precision="fp32", why="made by hand")


@pytest.fixture(scope="session")
def colours() -> dict[str, tuple[int, int, int]]:
    """Label -> the colour that it is."""
    return COLOURS

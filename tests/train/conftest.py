"""What the learning stage's tests share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from flowless.pipeline.index import DatasetIndex
from flowless.pipeline.moving_shapes import ShapesOptions, generate


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The NumPy float64 reference."""
    spec = importlib.util.spec_from_file_location("numpy_reference", Path(__file__).with_name("numpy_reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few Moving Shapes: 24 training and 12 validation videos of 32 x 32 pixels and 16 frames."""
    folder = tmp_path_factory.mktemp("shapes") / "data"
    return generate(folder, options=ShapesOptions(size=32, frames=16, train_videos=24, val_videos=12), workers=1)


@pytest.fixture(scope="session")
def train_index(shapes: Path) -> DatasetIndex:
    return DatasetIndex.load(shapes / "train.index.jsonl")


@pytest.fixture(scope="session")
def val_index(shapes: Path) -> DatasetIndex:
    return DatasetIndex.load(shapes / "val.index.jsonl")

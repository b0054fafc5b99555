"""One tiny trained-like checkpoint and its bundle, made once for the export and engine tests together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

LABELS = tuple(f"action {index}" for index in range(6))


def make_checkpoint(path: Path, name: str, *, size: int = 48, sampling: str = "centre") -> Path:
    """Write a randomly initialised model whose answers depend on everything that it sees."""
    import torch

    from flowless.pipeline.spec import ClipSpec
    from flowless.train.checkpoints import save_checkpoint
    from flowless.train.models import build_model

    spec = ClipSpec(segments=4, frames_per_segment=3, height=size, width=size + 1, short_side=size + 8, sampling=sampling)  # pyright: ignore
    torch.manual_seed(7)
    model = build_model(name, classes=len(LABELS), spec=spec, width=0.25).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(0, 0.1)
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.8, 1.5)
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(0, 0.3)
    if hasattr(model, "persistence"):
        model.get_parameter("persistence.weight").data.normal_(0, 0.05)
    return save_checkpoint(path, model, model_name=name, recipe={}, spec=spec, labels=LABELS, metrics={})


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.getbasetemp() / "tiny-bundles"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def checkpoint(shared) -> Path:
    path = shared / "pan.safetensors"
    return path if path.exists() else make_checkpoint(path, "pan-lite-r18")


@pytest.fixture(scope="session")
def exported(shared, checkpoint) -> Path:
    """A bundle as `flowless export` leaves it. Read it; copy it before changing it."""
    from flowless.export.bundle import export_bundle

    path = shared / "exported"
    if not path.exists():
        export_bundle(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def built(shared, exported) -> Path:
    """The bundle with engines for OpenVINO and TensorRT-RTX as well. Read it; copy it before changing it."""
    from flowless.export.build_engine import build

    path = shared / "built"
    if not path.exists():
        shutil.copytree(exported, path)
        for target in ("openvino", "tensorrt-rtx"):
            build(path, target=target)
    return path


@pytest.fixture
def bundle(built, tmp_path) -> Path:
    """A bundle of one's own to break."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def videos(shared) -> list[Path]:
    """Three videos of moving noise, encoded as H.264."""
    from flowless.pipeline.encode import write_video

    paths = [shared / f"video-{seed}.mp4" for seed in range(3)]
    for seed, path in enumerate(paths):
        if not path.exists():
            coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            write_video(path, (np.roll(coarse, (seed + 1) * index, axis=seed % 2) for index in range(24)))
    return paths

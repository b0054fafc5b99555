"""One tiny trained-like checkpoint and its bundle, made once for the export and engine tests together."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

# Helpers lie beside the tests, which are no package.
sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from flowless.export.precision.calibration import Calibration
    from flowless.pipeline.dataset.index import DatasetIndex
    from flowless.train.models import Recognizer

LABELS = tuple(f"action {index}" for index in range(6))


def make_checkpoint(path: Path, name: str, *, size: int = 48, sampling: str = "centre") -> Path:
    """Write a randomly initialised model whose scores depend on everything that it sees."""
    import torch

    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.train.checkpoints import save_checkpoint
    from flowless.train.models import build_model

    spec = ClipSpec(segments=4, frames_per_segment=3, height=size, width=size + 1, short_side=size + 8, sampling=sampling)  # pyright: ignore
    torch.manual_seed(7)
    model = build_model(name, classes=len(LABELS), spec=spec, width=0.25, blocks=1).eval()
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
def checkpoint(once) -> Path:
    return once("pan.safetensors", lambda path: make_checkpoint(path, "pan-lite-r18"))


@pytest.fixture(scope="session")
def exported(once, checkpoint) -> Path:
    """A bundle as `flowless export` leaves it. Read it; copy it before changing it."""
    from flowless.export.export_bundle import export_bundle

    return once("exported", lambda path: export_bundle(checkpoint, path))


@pytest.fixture(scope="session")
def built(once, exported) -> Path:
    """The bundle with engines for OpenVINO and TensorRT-RTX as well. Read it; copy it before changing it."""
    from flowless.export.build_engine import build

    def make(path: Path) -> None:
        shutil.copytree(exported, path)
        for target in ("openvino", "tensorrt-rtx"):
            build(path, target=target)

    return once("built", make)


@pytest.fixture
def bundle(built, tmp_path) -> Path:
    """A bundle of one's own to break."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def videos(once) -> list[Path]:
    """Three videos of moving noise, encoded as H.264."""
    from flowless.pipeline.video.encode import write_video

    def make(path: Path, seed: int) -> None:
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        write_video(path, (np.roll(coarse, (seed + 1) * index, axis=seed % 2) for index in range(24)))

    return [once(f"video-{seed}.mp4", partial(make, seed=seed)) for seed in range(3)]


def make_random_model(name: str, *, segments: int = 4, blocks: int = 1, **options: Any) -> Recognizer:
    """Return a small model of single frames whose scores depend on their order."""
    import torch
    from randomize_weights import randomize_weights

    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.train.models import build_model

    spec = ClipSpec(segments=segments, frames_per_segment=1, height=40, width=44, short_side=48)
    torch.manual_seed(3)
    made = build_model(name, classes=4, spec=spec, width=0.25, blocks=blocks, **options).eval()
    randomize_weights(made)
    return made


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Recognizer]:
    """Give a model by name; see `make_random_model`."""
    return make_random_model


@pytest.fixture(scope="session")
def film_model() -> Recognizer:
    """STM in one block of each stage's two."""
    return make_random_model("stm-r18", blocks=2, stm_placement="one-per-stage")


@pytest.fixture(scope="session")
def film_bundles(once, film_model) -> dict[str, Path]:
    """Its bundles, `offline` and `online`, with engines for OpenVINO. Read them; copy one before changing it."""
    from flowless.export.build_engine import build
    from flowless.export.export_bundle import export_bundle
    from flowless.train.checkpoints import Checkpoint

    about = {"name": "stm-r18", "spec": film_model.spec, "labels": ("down", "left", "right", "up")}

    def make(path: Path, form: str) -> None:
        made = Checkpoint(model=film_model, recipe={}, versions={}, metrics={}, **about)
        export_bundle(made, path, form="online" if form == "online" else "clip")
        build(path, target="openvino")

    return {form: once(f"film-{form}", partial(make, form=form)) for form in ("offline", "online")}


@pytest.fixture(scope="session")
def streaming_models() -> dict[str, Recognizer]:
    """Causal networks by name, 4 segments of 40 x 44 pixels: tsm-r18 sees one frame a segment, pan-lite-r18 three."""
    return {name: make_causal_model(name, frames) for name, frames in (("tsm-r18", 1), ("pan-lite-r18", 3))}


def make_causal_model(name: str, frames: int, *, blocks: int = 1) -> Recognizer:
    """Return a small causal model whose scores depend on the order of frames."""
    import torch
    from randomize_weights import randomize_weights

    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.train.models import build_model

    spec = ClipSpec(segments=4, frames_per_segment=frames, height=40, width=44, short_side=48)
    torch.manual_seed(5)
    made = build_model(name, classes=4, spec=spec, width=0.25, blocks=blocks, causal=True).eval()
    randomize_weights(made)
    return made


@pytest.fixture(scope="session")
def streaming_bundles(once, streaming_models) -> dict[str, Path]:
    """Streaming bundles of `streaming_models`, with engines for OpenVINO. Read them; copy one before changing it."""
    from flowless.export.build_engine import build
    from flowless.export.export_bundle import export_bundle
    from flowless.train.checkpoints import Checkpoint

    def make(path: Path, name: str) -> None:
        model, labels = streaming_models[name], ("down", "left", "right", "up")
        made = Checkpoint(model=model, name=name, spec=model.spec, labels=labels, recipe={}, versions={}, metrics={})
        export_bundle(made, path, form="streaming")
        build(path, target="openvino")

    return {name: once(f"streaming-{name}", partial(make, name=name)) for name in streaming_models}


#: Models that learn otherwise than `learn` has it. PAN-Lite has all its blocks, so that shortcuts without a convolution are met; an
#: export takes as long as there are layers, so the other ResNets have one block a stage, and X3D two, since every second one squeezes.
#: BN-Inception has two modules a stage, the kinds that it has in ten, and halves 40 rows five times, to 2; the maps of displacement have
#: sides that are no whole number of blocks; it is large, and is given few steps. da-vit-b gets one head and two blocks.
OTHERWISE: dict[str, dict[str, Any]] = {
    "pan-lite-r18": {"blocks": 0},
    "disentangling-bninception": {
        "spec": {"segments": 1, "frames_per_segment": 3, "height": 40, "width": 41, "short_side": 44},
        "blocks": 2,
        "steps": 30,
    },
    "da-vit-b": {"width": 0.09, "blocks": 2},
    "da-x3d-xs": {"width": 1.0, "blocks": 2, "steps": 12},
}


#: What the others see.
LEARNT_CLIP: dict[str, Any] = {"segments": 4, "frames_per_segment": 3, "height": 32, "width": 32, "short_side": 32}


def learn(path: Path, name: str, index: DatasetIndex) -> Path:
    """Write a model that has learnt a few videos by heart, so that int8 has something to lose."""
    import torch

    from flowless.pipeline.clip.preprocess import load_clip
    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.train.checkpoints import save_checkpoint
    from flowless.train.models import build_model

    own = OTHERWISE.get(name, {})
    spec = ClipSpec(**LEARNT_CLIP | own.get("spec", {}))
    clips = torch.from_numpy(np.concatenate([load_clip(index.path_of(video), spec)[:1] for video in index.videos]))
    labels = torch.tensor([video.label for video in index.videos])
    torch.manual_seed(7)
    model = build_model(
        name, classes=len(index.labels), spec=spec, width=own.get("width", 0.25), blocks=own.get("blocks", 1), dropout=0.0
    ).train()
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-3)
    for _ in range(own.get("steps", 30)):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(clips), labels).backward()
        optimiser.step()
    if "steps" in own:
        # So few steps leave batch norm's statistics far from what the weights have become.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
                module.momentum = 1.0
        with torch.no_grad():
            model(clips)
    return save_checkpoint(path, model.eval(), model_name=name, recipe={}, spec=spec, labels=index.labels, metrics={})


@pytest.fixture(scope="session")
def learnt(once, train_index) -> Callable[[str], Path]:
    """Give a bundle of a model that has learnt the training videos, by name; made once. Copy it before changing it."""

    def make(path: Path, name: str) -> None:
        from flowless.export.export_bundle import export_bundle

        checkpoint = learn(path.with_name(f"learnt-{name}.safetensors"), name, train_index)
        export_bundle(checkpoint, path, videos=[train_index.path_of(video) for video in train_index.videos[:4]])

    return lambda name: once(f"learnt-{name}", partial(make, name=name))


@pytest.fixture
def learnt_bundle(learnt, tmp_path) -> Path:
    """A bundle of PAN-Lite that has learnt, to build in."""
    return Path(shutil.copytree(learnt("pan-lite-r18"), tmp_path / "learnt"))


@pytest.fixture(scope="session")
def calibration(shapes) -> Calibration:
    """Twelve of the training videos, as models that `learnt` gives see them."""
    from flowless.export.precision.calibration import Calibration
    from flowless.pipeline.clip.spec import ClipSpec

    return Calibration(index=shapes / "train.index.jsonl", spec=ClipSpec(**LEARNT_CLIP), videos=12)


@pytest.fixture(scope="session")
def assert_same_outputs() -> Callable[[Any, Any], None]:
    """Return what compares two `ModelOutputs` of the same clips: scores, and those of branches and segments, and VAP's weights."""

    def compare(one: Any, other: Any) -> None:
        _assert_close(one.scores, other.scores)
        assert [branch.name for branch in one.branches] == [branch.name for branch in other.branches]
        for mine, theirs in zip(one.branches, other.branches, strict=True):
            for part in ("scores", "segment_scores", "timescale_weights"):
                _assert_close(getattr(mine, part), getattr(theirs, part))

    return compare


@pytest.fixture(scope="session")
def assert_same_explanation(assert_same_outputs: Callable[[Any, Any], None]) -> Callable[[Any, Any, np.ndarray], None]:
    """Return what compares the outputs and the motion cues of two `InspectableModel`s for clips."""

    def compare(one: Any, other: Any, clips: np.ndarray) -> None:
        assert_same_outputs(one.run(clips), other.run(clips))
        mine, theirs = one.cue(clips), other.cue(clips)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert (mine.name, mine.kind, mine.over) == (theirs.name, theirs.kind, theirs.over)
            _assert_close(mine.values, theirs.values)

    return compare


@pytest.fixture(scope="session")
def assert_bundle_explains_alike(assert_same_explanation: Callable[[Any, Any, np.ndarray], None]) -> Callable[[Any, Path], None]:
    """Return what compares the outputs and the motion cues of a checkpoint and its bundle."""

    def compare(checkpoint: Any, bundle: Path) -> None:
        from flowless.export.explain.introspection import BundleModel, CheckpointModel
        from flowless.export.verify.reference import Reference

        clips = Reference.load(bundle / "reference.npz", checkpoint.spec).clips[:2]
        assert_same_explanation(CheckpointModel(checkpoint, path=Path()), BundleModel(bundle), clips)

    return compare


def _assert_close(mine: np.ndarray | None, theirs: np.ndarray | None) -> None:
    assert (mine is None) == (theirs is None)
    if mine is not None and theirs is not None:
        assert mine.shape == theirs.shape
        assert np.abs(mine).max() > 0
        np.testing.assert_allclose(theirs, mine, rtol=1e-3, atol=1e-3 * np.abs(mine).max())

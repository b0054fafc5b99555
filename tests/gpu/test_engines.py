"""Engines on a GPU as users load them: `flowless.load` of a bundle, on what this machine can run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from flowless.bench.lib.networks import random_model
from flowless.engines.backends.backend import why_not
from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.engine import Engine
from flowless.export.export_bundle import export_bundle
from flowless.export.verify.parity import check
from flowless.export.verify.reference import Reference
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import save_checkpoint

pytestmark = pytest.mark.gpu
SPEC = ClipSpec(segments=4, frames_per_segment=2, height=64, width=64, short_side=72)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    model = random_model("pan-lite-r18", classes=5, spec=SPEC, width=0.25)
    labels = [f"class {number}" for number in range(5)]
    made = save_checkpoint(folder / "model.safetensors", model, model_name="pan-lite-r18", recipe={}, spec=SPEC, labels=labels, metrics={})
    export_bundle(made, folder / "bundle")
    return folder / "bundle"


def test_onnx_runtime_runs_on_the_gpu(bundle: Path) -> None:
    """Where its CUDA provider does not load, ONNX Runtime goes on on the CPU and says nothing: `Engine.device` must."""
    import onnxruntime

    import flowless

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime {onnxruntime.__version__} has no CUDA provider")
    engine = flowless.load(bundle, "onnxruntime")
    assert engine.device == "GPU"
    manifest = read_manifest(bundle)
    reference = Reference.load(manifest.path_of(manifest.reference), manifest.spec)
    check(engine._backend, reference, precision="fp32", what="onnxruntime on the GPU")


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_clips_and_scores_stay_on_the_gpu(target: str, bundle: Path, tmp_path: Path) -> None:
    """A clip that PyTorch has yet to compute on a stream of its own, and scores that PyTorch takes on another."""
    import torch

    engine = load_on_gpu(bundle, target, tmp_path)
    clips = np.random.default_rng(0).integers(0, 256, (11, *engine.spec.shape), dtype=np.uint8)
    expected = engine(clips)
    for stream in (torch.cuda.Stream(), torch.cuda.default_stream()):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            placed = torch.from_numpy(clips).cuda(non_blocking=True) + 0
            scores = engine(placed, on_device=True, stream=stream.cuda_stream)
        with torch.cuda.stream(torch.cuda.Stream()):
            taken = torch.from_dlpack(scores)
            assert taken.data_ptr() == scores.address
            np.testing.assert_allclose(taken.cpu().numpy(), expected, atol=1e-3 * expected.std())
        np.testing.assert_allclose(engine(placed), expected, atol=1e-3 * expected.std())
    del scores, taken
    kept = [engine(placed[:1], on_device=True).address for _ in range(20)]
    assert len(set(kept)) < 20, "memory of scores that are gone is used again"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_videos_are_decoded_on_the_gpu(target: str, bundle: Path, tmp_path: Path) -> None:
    from flowless.engines.decoded_scores import why_not_gpu
    from flowless.pipeline.video.encode import write_video

    if reason := why_not_gpu():
        pytest.skip(reason)
    engine = load_on_gpu(bundle, target, tmp_path)
    coarse = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for number in range(20):
        write_video(tmp_path / f"{number:02}.mp4", (np.roll(coarse, (number + 1) * index, axis=number % 2) for index in range(24)))
    paths = [*sorted(tmp_path.glob("*.mp4")), tmp_path / "missing.mp4"]
    found, expected = (list(engine.predict_many(paths, decode=decode)) for decode in ("gpu", "cpu"))
    assert [item.video for item in found] == [str(path) for path in paths]
    assert [item.decoder for item in found[:-1]] == ["dali"] * 20
    assert found[-1].error == expected[-1].error
    for one, other in zip(found[:-1], expected[:-1], strict=True):
        assert one.scores is not None
        assert other.scores is not None
        np.testing.assert_allclose(one.scores, other.scores, atol=0.05 * float(np.ptp(other.scores)))


def load_on_gpu(bundle: Path, target: str, folder: Path) -> Engine:
    """Load an engine of a target, built in a copy of the bundle; skip where it does not run here."""
    import flowless
    from flowless.export.build_engine import build
    from flowless.export.verify.checks import Checks

    if reason := why_not(target):
        pytest.skip(reason)
    copied = Path(shutil.copytree(bundle, folder / "bundle"))
    if target != "onnxruntime":
        build(copied, target=target, checks=Checks(slower=True))  # type: ignore[arg-type]
    engine = flowless.load(copied, target)
    if engine.device != "GPU":
        pytest.skip(engine.why)
    return engine


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_tensorrt_is_built_verified_and_loaded(target: str, precision: str, bundle: Path) -> None:
    import flowless
    from flowless.export.build_engine import build
    from flowless.export.verify.checks import Checks

    if reason := why_not(target):
        pytest.skip(reason)
    record = build(bundle, target=target, precision=precision, checks=Checks(slower=True))  # type: ignore[arg-type]
    assert record.status == "verified"
    engine = flowless.load(bundle, target, precision)
    assert engine.device == "GPU"
    clips = np.stack([Reference.load(bundle / "reference.npz", SPEC).clips[0]] * 11)  # more than the profile's largest batch
    scores = engine(clips)
    assert scores.shape == (11, 5)
    assert np.isfinite(scores).all()

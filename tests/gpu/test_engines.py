"""Engines on a GPU as users load them: `flowless.load` of a bundle, on what this machine can run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowless.bench.lib.networks import random_model
from flowless.engines.backends.backend import why_not
from flowless.engines.bundle.manifest import read_manifest
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
    check(engine._backend, reference.clips, reference.scores, precision="fp32", what="onnxruntime on the GPU")


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

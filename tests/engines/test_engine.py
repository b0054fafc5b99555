"""Loading the best engine, running it, and predicting videos."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import flowless
from flowless import cuda_driver
from flowless.engines import loading
from flowless.engines.backends import openvino_core
from flowless.engines.backends.backend import open_backend, why_not
from flowless.engines.backends.openvino_core import HINTS
from flowless.engines.bundle.manifest import Artefact, read_manifest
from flowless.engines.engine import Engine
from flowless.engines.video import timed_clip
from flowless.errors import FlowlessError
from flowless.machine import machine_name
from flowless.pipeline.clip.preprocess import load_clip


@pytest.fixture(scope="module")
def engine(built):
    return flowless.load(built, target="openvino")


def random_clips(spec, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, *spec.shape), dtype=np.uint8)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_scores_are_pytorchs(target, built, checkpoint):
    import torch

    from flowless.train.checkpoints import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    clip = random_clips(loaded.spec)
    with torch.inference_mode():
        expected = loaded.model(torch.from_numpy(clip)).numpy()
    found = flowless.load(built, target=target)(clip)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.std())


def test_the_best_engine_that_runs_here(built, monkeypatch):
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: None)
    engine = flowless.load(built)
    assert (engine.target, engine.precision, engine.device) == ("openvino", "fp32", "CPU")
    assert "the fastest engine of this bundle that runs here (verified)" in engine.why
    assert "not tensorrt-rtx: there is no NVIDIA GPU here" in engine.why
    assert "not tensorrt: the bundle has no such engine" in engine.why
    assert flowless.load(built, "onnxruntime").why.startswith("onnxruntime fp32: asked for")


def test_what_was_measured_here_decides_between_targets_and_precisions(bundle, monkeypatch):
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: None)

    def loaded(times, *, machine=None, **asked):
        """Load the bundle after its engines were measured so: target -> ms of a clip."""
        manifest = read_manifest(bundle)
        for target, time in times.items():
            artefact = manifest.artefact(target, "fp32")
            assert artefact is not None
            figures = {} if time is None else {"latency_ms_p50": time, "machine": machine or machine_name()}
            manifest = manifest.with_artefact(replace(artefact, figures=figures))
        manifest.write()
        return flowless.load(bundle, **asked)

    assert loaded({"openvino": 3.0, "onnxruntime": 2.0}).target == "onnxruntime"
    assert loaded({"openvino": 2.0, "onnxruntime": 3.0}).target == "openvino"
    # Without the time of one, or on another machine, nothing is known.
    assert loaded({"openvino": 3.0, "onnxruntime": None}).target == "openvino"
    assert loaded({"openvino": 3.0, "onnxruntime": 2.0}, machine="another").target == "openvino"
    assert loaded({"openvino": 2.0, "onnxruntime": 3.0}, target="onnxruntime").target == "onnxruntime"


def test_without_openvino_the_next_is_taken(built, monkeypatch):
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    engine = flowless.load(built)
    assert engine.target == "onnxruntime"
    assert "not openvino: openvino is not installed (pip install openvino)" in engine.why


def test_a_gpu_that_the_engine_was_not_built_for(built, monkeypatch):
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (12, 0))
    manifest = read_manifest(built)
    artefact = manifest.artefact("tensorrt-rtx", "fp32")
    assert artefact is not None
    assert why_not("tensorrt-rtx", artefact) is None
    chosen = replace(artefact, options={"compute_capabilities": [86, 89]})
    message = why_not("tensorrt-rtx", chosen)
    assert message is not None
    assert message.startswith("it was built for compute capability 86, 89 and the GPU here has 120; build it again with: flowless build")


def test_on_a_gpu_that_tensorrt_rtx_does_not_know_the_next_engine_is_taken(built, monkeypatch):
    """An H100: TensorRT-RTX comes first in the order, and would refuse the engine only when it is opened."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (9, 0))
    engine = flowless.load(built)
    assert (engine.target, engine.device) == ("openvino", "CPU")
    assert "not tensorrt-rtx: tensorrt_rtx" in engine.why
    assert "has compute capability 9.0; build another target" in engine.why


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": "cuda"}, "target is 'cuda'; it must be one of tensorrt, tensorrt-rtx, openvino, onnxruntime"),
        ({"precision": "fp12"}, "precision is 'fp12'; it must be one of fp32, bf16, fp16, int8"),
        ({"target": "openvino", "precision": "int8"}, "no engine openvino int8 that runs here.*flowless build"),
        ({"hint": "f8"}, "hint is 'f8'"),
        ({"target": "onnxruntime", "hint": "bf16"}, "only openvino takes a hint"),
        ({"threads": 0}, "threads is 0"),
        ({"warm_up": -1}, "warm_up is -1; it must be True, False, or the number of clips in a batch"),
        ({"warm_up": "yes"}, "warm_up is 'yes'; it must be True, False"),
        ({"target": "tensorrt", "cuda_graph": True}, "cuda_graph is True and target 'tensorrt'; only tensorrt-rtx captures"),
        ({"hint": "bf16", "cuda_graph": True}, "cuda_graph is True and target 'openvino'"),
    ],
)
def test_what_load_refuses(arguments, says, built):
    with pytest.raises(FlowlessError, match=says):
        flowless.load(built, **arguments)


def test_tensorrt_rtx_without_a_gpu(built):
    if why_not("tensorrt-rtx") is None:
        pytest.skip("there is a GPU here")
    with pytest.raises(FlowlessError, match="not tensorrt-rtx: there is no NVIDIA GPU here"):
        flowless.load(built, "tensorrt-rtx")


@pytest.mark.gpu
def test_tensorrt_rtx_is_pytorchs_on_a_gpu(built):
    clip = random_clips(read_manifest(built).spec, 9)
    expected = flowless.load(built, "openvino")(clip)
    found = flowless.load(built, "tensorrt-rtx")(clip)
    np.testing.assert_allclose(found, expected, atol=3e-3 * expected.std())


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_batch_is_its_clips(target, built):
    engine = flowless.load(built, target)
    clip = random_clips(engine.spec, 5)
    together = engine(clip)
    assert together.shape == (5, len(engine.labels))
    apart = np.concatenate([engine(clip[index : index + 1]) for index in range(5)])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    strided = np.concatenate([clip, clip])[::2]
    np.testing.assert_allclose(engine(strided), engine(np.ascontiguousarray(strided)), atol=1e-6)


@pytest.mark.parametrize(
    ("clip", "says"),
    [
        (np.zeros((1, 4, 3, 48, 49, 3), np.float32), "the clip is float32"),
        ([[0]], "the clip is list"),
        (np.zeros((4, 3, 48, 49, 3), np.uint8), r"takes \[B, 4, 3, 48, 49, 3\]"),
        (np.zeros((1, 4, 3, 49, 48, 3), np.uint8), r"shape \[1, 4, 3, 49, 48, 3\]"),
        (np.zeros((0, 4, 3, 48, 49, 3), np.uint8), "B of at least 1"),
    ],
)
def test_a_clip_of_another_kind(clip, says, engine):
    with pytest.raises(FlowlessError, match=says):
        engine(clip)


def test_outputs_stay_when_the_engine_runs_again(engine):
    first, second = random_clips(engine.spec, 2)
    kept = engine(first[None])
    copy = kept.copy()
    engine(second[None])
    np.testing.assert_array_equal(kept, copy)


class CountingBackend:
    """A real backend, with the clips that it was given."""

    def __init__(self, backend):
        self.backend, self.seen = backend, []
        self.device, self.fallback = backend.device, backend.fallback

    def __call__(self, clip):
        self.seen.append(clip)
        return self.backend(clip)


@pytest.mark.parametrize(("warm_up", "clips"), [(False, []), (0, []), (True, [1]), (3, [3])])
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_warm_up_runs_the_engine_before_it_is_returned(target, warm_up, clips, built, monkeypatch):
    monkeypatch.setattr(loading, "open_backend", lambda *args, **options: CountingBackend(open_backend(*args, **options)))
    engine = flowless.load(built, target, warm_up=warm_up)
    seen = engine._backend.seen  # pyright: ignore[reportAttributeAccessIssue]
    assert [len(batch) for batch in seen] == clips
    assert not any(batch.any() for batch in seen)
    assert (engine.warm_up_seconds is None) == (not clips)
    assert engine.warm_up_seconds is None or engine.warm_up_seconds > 0
    some = random_clips(engine.spec)
    assert engine(some).tobytes() == flowless.load(built, target)(some).tobytes()


def test_a_warm_up_of_an_online_graph(film_bundles):
    engine = flowless.load(film_bundles["online"], warm_up=2)
    assert engine.online
    assert engine.warm_up_seconds


def test_after_a_warm_up_the_first_prediction_imports_nothing(built, videos):
    code = f"""
import sys, flowless
engine = flowless.load({str(built)!r}, "openvino", warm_up=True)
before = set(sys.modules)
engine.predict({str(videos[0])!r})
new = sorted(name for name in set(sys.modules) - before if name.startswith("flowless") or name in {{"av", "PIL.Image"}})
sys.exit(f"imported: {{new}}" if new else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_many_threads_one_engine(engine):
    clips = random_clips(engine.spec, 12)
    expected = engine(clips)
    with ThreadPoolExecutor(4) as pool:
        found = np.concatenate(list(pool.map(lambda index: engine(clips[index : index + 1]), range(12))))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_bf16_hint_is_named(built):
    """An engine reports the precision that OpenVINO computes in, which on some processors is not the hint's."""
    engine = flowless.load(built, hint="bf16")
    here = HINTS[openvino_core.computes_in("bf16")]
    assert (engine.target, engine.precision) == ("openvino", here)
    assert f"computing in {here}" in engine.why
    clip = random_clips(engine.spec)
    exact = flowless.load(built, "openvino")(clip)
    np.testing.assert_allclose(engine(clip), exact, atol=0.2 * exact.std())


#: A processor -> what OpenVINO computes in there with the hints f32, bf16 and f16.
PROCESSORS = {
    "AVX2": ("f32", "f32", "f32"),
    "AVX-512 without bf16, which is emulated": ("f32", "bf16", "f32"),
    "AVX-512 with bf16": ("f32", "bf16", "f32"),
    "AVX-512 with fp16, with or without AMX": ("f32", "bf16", "f16"),
    "Arm with fp16": ("f32", "f32", "f16"),
    "falls back on bf16": ("f32", "bf16", "bf16"),
}


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("stored", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("hint", [None, "f32", "bf16", "f16"])
def test_what_is_computed_in_on_any_processor(processor, stored, hint, monkeypatch):
    computes = dict(zip(HINTS, PROCESSORS[processor], strict=True))
    monkeypatch.setattr(openvino_core, "computes_in", computes.__getitem__)
    own = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}[stored]
    artefact = Artefact(target="openvino", precision=stored, status="verified", files=("a",), options={"hint": own})
    computed, note = loading.computed_precision(artefact, hint)
    wanted, found = hint or own, computes[hint or own]
    if stored == "int8":
        assert (computed, note) == ("int8", "")
    else:
        assert computed == HINTS[found]
        assert ("does not compute in" in note) == (found != wanted)
    other = replace(artefact, target="onnxruntime")
    assert loading.computed_precision(other, None) == (stored, "")


def test_the_timed_clip_is_the_pipelines_clip(engine, videos):
    for path in videos:
        made = timed_clip(path, engine.spec)
        np.testing.assert_array_equal(made.clip, load_clip(path, engine.spec))
        assert made.decode > 0
        assert made.preprocess > 0


def test_a_prediction(engine, videos):
    prediction = engine.predict(videos[0], top=3)
    scores = engine(load_clip(videos[0], engine.spec)).mean(0)
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert [item.index for item in prediction.top] == list(np.argsort(-shares)[:3])
    np.testing.assert_allclose([item.score for item in prediction.top], np.sort(shares)[::-1][:3], rtol=1e-5)
    assert [item.label for item in prediction.top] == [engine.labels[item.index] for item in prediction.top]
    assert len(engine.predict(videos[0], top=100).top) == len(engine.labels)
    assert set(prediction.seconds) == {"decode", "preprocess", "engine"}
    with pytest.raises(FlowlessError, match="top is 0"):
        engine.predict(videos[0], top=0)


@pytest.mark.parametrize(
    ("sampling", "crop", "views"), [("two-clip", "centre", 2), ("centre", "three", 3), ("dense", "three", 30), ("ten-draw", "three", 30)]
)
def test_views_are_averaged(sampling, crop, views, built, videos):
    """A bundle that takes several views of a video scores each, a few at a time, and averages before the softmax."""
    manifest = read_manifest(built)
    spec = replace(manifest.spec, sampling=sampling, crop=crop)
    artefact = manifest.artefact("openvino", "fp32")
    assert artefact is not None
    backend = open_backend(artefact, manifest.path_of(artefact.files[0]), classes=len(manifest.labels))
    seen = []

    class Counting:
        device = "CPU"
        fallback = None

        def __call__(self, clip):
            seen.append(len(clip))
            return backend(clip)

    engine = Engine(Counting(), manifest=replace(manifest, spec=spec), target="openvino", precision="fp32", why="")  # pyright: ignore[reportArgumentType]
    prediction = engine.predict(videos[0])
    assert sum(seen) == views
    assert max(seen) <= 8
    clip = load_clip(videos[0], spec)
    assert len(clip) == views
    alone = np.stack([engine(view[None])[0] for view in clip])
    assert prediction.scores is not None
    np.testing.assert_allclose(prediction.scores, alone.astype(np.float64).mean(0), rtol=1e-4, atol=1e-5)
    assert np.ptp(alone, axis=0).max() > 10 * np.abs(prediction.scores - alone.mean(0)).max(), "the views differ"
    assert prediction.top[0].index == alone.mean(0).argmax()


def test_many_videos_in_their_order(engine, videos, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    paths = [videos[0], tmp_path / "text.mp4", videos[1], tmp_path / "missing.mp4", tmp_path / "empty.mp4", videos[2]]
    found = list(engine.predict_many(paths, 2))
    assert [item.video for item in found] == [str(path) for path in paths]
    assert [item.error is None for item in found] == [True, False, True, False, False, True]
    assert all(str(path) in item.error for path, item in zip(paths, found, strict=True) if item.error)
    np.testing.assert_array_equal(found[0].scores, engine.predict(videos[0]).scores)
    assert list(engine.predict_many([])) == []


def test_decoding_goes_on_while_the_engine_runs(engine, videos):
    """The engine waits, at its first clip, until another video has been decoded: without overlap this would never end."""
    decoded = threading.Semaphore(0)
    held = []

    class Waiting:
        device = "CPU"
        fallback = None

        def __call__(self, clip):
            if not held:
                held.append(decoded.acquire(timeout=20) and decoded.acquire(timeout=20))
            return np.zeros((len(clip), len(engine.labels)), np.float32)

    import flowless.engines.engine as module

    real = module.timed_clip

    def counting(path, spec):
        made = real(path, spec)
        decoded.release()
        return made

    module.timed_clip = counting
    try:
        slow = Engine(Waiting(), manifest=engine.manifest, target="openvino", precision="fp32", why="")  # pyright: ignore[reportArgumentType]
        assert len(list(slow.predict_many(videos * 2, workers=2))) == 6
    finally:
        module.timed_clip = real
    assert held == [True]


def test_what_stops_early_leaves_no_thread(engine, videos):
    before = threading.active_count()
    for _ in engine.predict_many(videos * 4, workers=2):
        break
    assert threading.active_count() <= before


def test_an_engine_with_other_scores_than_labels_is_refused(bundle):
    manifest = read_manifest(bundle)
    replace(manifest, labels=manifest.labels[:2]).write()
    with pytest.raises(FlowlessError, match="gives 6 scores, and its manifest has 2 labels"):
        flowless.load(bundle, "openvino")(np.zeros((1, *manifest.spec.shape), np.uint8))


def test_wrong_numbers_are_refused(bundle):
    engine = flowless.load(bundle, "openvino")
    with pytest.raises(FlowlessError, match="workers is -1"):
        next(engine.predict_many(["a.mp4"], workers=-1))
    for clips in (0, 2.5, "2"):
        with pytest.raises(FlowlessError, match=f"clips is {clips!r}"):
            engine.warm_up(clips)  # pyright: ignore[reportArgumentType]

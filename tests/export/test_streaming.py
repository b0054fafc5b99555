"""The streaming form of a causal network: exported, built for every target, and refused where its state does not move."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_streaming_form import offline_causal
from video_files import all_frames

from flowless.cli import main
from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.bundle.pack import pack
from flowless.engines.loading import load
from flowless.engines.streaming.online import Online
from flowless.engines.streaming.state import NEXT
from flowless.errors import CheckFailed, FlowlessError
from flowless.export import export_bundle as exporting
from flowless.export.build_engine import build
from flowless.export.explain.introspection import BundleModel, CheckpointModel
from flowless.export.export_bundle import export_bundle
from flowless.export.graph.graph_feeds import GraphFeeds
from flowless.export.precision.calibration import Calibration
from flowless.export.precision.graph_cache import precise_graph
from flowless.export.targets import build_openvino
from flowless.export.targets.build_options import BuildOptions
from flowless.export.verify import parity
from flowless.export.verify.checks import Checks, EngineRefused
from flowless.export.verify.reference import Reference
from flowless.pipeline.clip.preprocess import load_clip, resize_and_crop
from flowless.train.checkpoints import Checkpoint

N, H, W = 4, 40, 44
NAMES = ("tsm-r18", "pan-lite-r18")
#: Largest difference of a score from the causal network's over the whole film, in float64.
TOLERANCE = 1e-4


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def bundle_of(streaming_bundles, tmp_path) -> Callable[[str], Path]:
    """Give a bundle of one's own to build in."""
    return lambda name: Path(shutil.copytree(streaming_bundles[name], tmp_path / name))


def pictures_of(path: Path, spec: Any, count: int = 30) -> np.ndarray:
    """Return the first frames of a video as an engine sees them, uint8 `[T, H, W, 3]`."""
    frames = np.stack([frame for frame, _ in zip(all_frames(path), range(count), strict=False)])
    return resize_and_crop(frames, spec)


def test_the_graph_says_what_it_takes(streaming_bundles, name):
    proto, manifest = onnx.load(streaming_bundles[name] / "model.onnx"), read_manifest(streaming_bundles[name])
    float32, uint8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8

    def message(items):
        return [
            (item.name, item.type.tensor_type.elem_type, [part.dim_param or part.dim_value for part in item.type.tensor_type.shape.dim])
            for item in items
        ]

    state = [(tensor.name, uint8 if tensor.dtype == "uint8" else float32, ["B", *tensor.shape]) for tensor in manifest.state]
    assert message(proto.graph.input) == [("frame", uint8, ["B", H, W, 3]), *state]
    assert message(proto.graph.output) == [("scores", float32, ["B", 4]), *((NEXT + item, *rest) for item, *rest in state)]
    frames = [("frames", uint8, ["B", 2, H, W, 3])] if name == "pan-lite-r18" else []
    assert state == [
        *frames,
        ("shift_00", float32, ["B", 8, 10, 11]),
        ("shift_01", float32, ["B", 2, 10, 11]),
        ("shift_02", float32, ["B", 4, 5, 6]),
        ("shift_03", float32, ["B", 8, 3, 3]),
        ("features", float32, ["B", N - 1, 128]),
        ("started", float32, ["B", 2]),
    ]
    # TensorRT neither joins nor cuts bytes.
    assert {node.op_type for node in proto.graph.node if {"frame", "frames"} & set(node.input)} - {"Shape"} == {"Cast"}
    assert manifest.memory == 0


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_every_frame_of_a_film_is_that_of_the_causal_network(streaming_bundles, streaming_models, videos, name, target):
    engine = load(streaming_bundles[name], target)
    film = pictures_of(videos[1], engine.spec)
    memory, scores = None, []
    for frame in film:
        now, memory = engine.step(frame[None], memory)
        scores.append(now[0])
    expected = offline_causal(streaming_models[name], film)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)
    assert np.ptp(expected[N:], axis=0).max() > 100 * TOLERANCE, "the frames change, and so do the scores"


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_real_film(streaming_bundles, streaming_models, clips, name, target):
    online = Online(load(streaming_bundles[name], target))
    frames = list(all_frames(clips / "short_32_frames.mp4"))
    scores = np.stack([online.push(frame) for frame in frames])
    film = resize_and_crop(np.stack(frames), online.engine.spec)
    np.testing.assert_allclose(scores, offline_causal(streaming_models[name], film), rtol=0, atol=TOLERANCE)
    assert (online.frames, len(film)) == (32, 32)


def test_what_has_no_such_form_is_refused(checkpoint, tmp_path, capsys):
    out = str(tmp_path / "bundle")
    assert main(["export", str(checkpoint), "--out", out, "--streaming"]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "pan-lite-r18: it is not causal" in message
    assert "--causal" in message
    assert main(["export", str(checkpoint), "--out", out, "--streaming", "--online"]) == 1
    assert "--online and --streaming are two forms" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "bundle").exists()


def stuck(proto: onnx.ModelProto, state: str) -> onnx.ModelProto:
    """Return a graph that returns a state as it was given."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for node in changed.graph.node:
        node.output[:] = [f"unused_{item}" if item == NEXT + state else item for item in node.output]
        node.input[:] = [f"unused_{item}" if item == NEXT + state else item for item in node.input]
    changed.graph.node.append(onnx.helper.make_node("Identity", [state], [NEXT + state], name="stuck"))
    return changed


@pytest.mark.parametrize("state", ["frames", "shift_01", "features", "started"])
def test_a_state_that_does_not_move_is_refused(bundle_of, monkeypatch, state):
    """Each single step is right; `frames` and a part of `started` show in a film alone."""
    bundle, honest = bundle_of("pan-lite-r18"), build_openvino.build_openvino
    monkeypatch.setattr(build_openvino, "build_openvino", lambda proto, folder, **rest: honest(stuck(proto, state), folder, **rest))
    with pytest.raises(EngineRefused, match="differ from PyTorch"):
        build(bundle, target="openvino", options=BuildOptions(force=True))
    assert read_manifest(bundle).artefact("openvino", "fp32"), "the honest one is still there"


def test_an_export_whose_state_does_not_move_is_refused(streaming_models, tmp_path, monkeypatch):
    honest, model = exporting.export_onnx, streaming_models["pan-lite-r18"]

    def wrong(module, path, **rest):
        path.write_bytes(stuck(honest(module, path, **rest), "frames").SerializeToString())

    monkeypatch.setattr(exporting, "export_onnx", wrong)
    made = Checkpoint(model=model, name="pan-lite-r18", spec=model.spec, labels=("a", "b", "c", "d"), recipe={}, versions={}, metrics={})
    with pytest.raises(CheckFailed, match="differ from PyTorch"):
        export_bundle(made, tmp_path / "bundle", form="streaming")
    assert not (tmp_path / "bundle").exists()


def test_reference_clips_without_a_film_are_refused(streaming_bundles):
    """Without its scores a build would pass whose state nothing has checked frame by frame."""
    engine = load(streaming_bundles["tsm-r18"], "openvino")
    reference = Reference.load(streaming_bundles["tsm-r18"] / "reference.npz", engine.spec)
    assert parity.check(engine._backend, reference, precision="fp32", what="it").passed
    with pytest.raises(FlowlessError, match=r"it: the bundle's reference clips have no scores of a film\. Export"):
        parity.check(engine._backend, replace(reference, film_scores=None), precision="fp32", what="it")


def test_half_precision_and_other_targets(bundle_of, name):
    bundle = bundle_of(name)
    half = build(bundle, target="tensorrt-rtx", precision="fp16", options=BuildOptions(batch=(1, 2, 4)))
    assert half.options["batch"] == [1, 2, 4]
    with pytest.raises(EngineRefused, match="run in fp32"):
        build(bundle, target="onnxruntime", precision="fp16")  # on a CPU
    manifest = read_manifest(bundle)
    cast = precise_graph(manifest, "fp16").proto
    assert GraphFeeds(cast).state == manifest.state, "float32 and uint8 at the border"
    kinds = {item.name: item.type.tensor_type.elem_type for item in (*cast.graph.input, *cast.graph.output)}
    assert all(kinds[NEXT + tensor.name] == kinds[tensor.name] for tensor in manifest.state)
    halves = {node.name for node in cast.graph.node for item in node.input if item in half_tensors(cast)}
    assert sum(node.op_type == "Conv" and node.name in halves for node in cast.graph.node) == 13
    assert sum(node.op_type == "Concat" and node.name in halves for node in cast.graph.node) == 4, "the shifts join halves"


def half_tensors(proto: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(proto)
    return {item.name for item in inferred.graph.value_info if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}


def test_int8_is_that_of_the_clip(bundle_of, streaming_models, shapes, tmp_path):
    """The step's shift joins numbers of one grid: the scales are those of the clip's graph, and the scores differ by their last digits."""
    name = "pan-lite-r18"
    model, streaming = streaming_models[name], bundle_of(name)
    made = Checkpoint(model=model, name=name, spec=model.spec, labels=("a", "b", "c", "d"), recipe={}, versions={}, metrics={})
    export_bundle(made, tmp_path / "clip")
    loose = Checks(slower=True, parity=False)  # its weights are random, and int8 loses more of them than it may
    calibration = Calibration(index=shapes / "train.index.jsonl", spec=model.spec, videos=6)
    clips = Reference.load(streaming / "reference.npz", model.spec).clips[:2]
    exact = load(streaming, "onnxruntime", "fp32")(clips)
    for target in ("onnxruntime", "openvino"):
        scores = []
        for bundle in (tmp_path / "clip", streaming):
            record = build(bundle, target=target, precision="int8", checks=loose, calibration=calibration)
            assert record.figures["layers"]["convolution int8"] == 13
            scores.append(load(bundle, target, "int8")(clips))
        apart = np.abs(scores[0] - scores[1]).max()
        assert apart < 0.05 * np.abs(scores[0] - exact).max(), f"{target}: {apart}"
    ours, theirs = (read_manifest(bundle).calibration or {} for bundle in (streaming, tmp_path / "clip"))
    assert len(ours["used"]) == 6
    assert ours["used"] == theirs["used"]


def test_int8_passes_the_gates(bundle_of, shapes):
    bundle = bundle_of("tsm-r18")
    calibration = Calibration(index=shapes / "train.index.jsonl", spec=read_manifest(bundle).spec, videos=8)
    record = build(bundle, target="openvino", precision="int8", checks=Checks(slower=True), calibration=calibration)
    assert record.status == "verified"
    assert build(bundle, target="tensorrt-rtx", precision="int8", calibration=calibration).figures["layers"]["convolution int8"] == 13


def test_whole_videos_and_the_online_command(streaming_bundles, streaming_models, videos, capsys):
    """`predict` scores clips in N steps; `predict --online` the frames one by one, with frames that are not scored in the segments."""
    import torch

    name = "pan-lite-r18"
    model, bundle = streaming_models[name], str(streaming_bundles[name])
    assert main(["predict", bundle, str(videos[0]), "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)
    with torch.inference_mode():
        scores = model(torch.from_numpy(load_clip(videos[0], model.spec))).numpy()[0]
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    np.testing.assert_allclose([item["score"] for item in seen["top"]], np.sort(shares)[::-1], atol=1e-4)
    assert main(["predict", bundle, str(videos[0]), "--online", "--every", "5", "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)
    assert [moment["frame"] for moment in seen["moments"]] == [0, 5, 10, 15, 20]
    film = pictures_of(videos[0], model.spec)
    clip = np.stack([film[[max(place - back, 0) for back in (2, 1, 0)]] for place in (0, 5, 10, 15)])
    with torch.inference_mode():
        scores = model(torch.from_numpy(clip[None])).numpy()[0]
    assert seen["moments"][3]["label"] == ("down", "left", "right", "up")[scores.argmax()]
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert seen["moments"][3]["score"] == pytest.approx(shares.max(), abs=1e-4)


def test_a_packed_bundle_streams(streaming_bundles, tmp_path, name):
    packed = pack(streaming_bundles[name], tmp_path / "packed", target="openvino")
    assert packed.state == read_manifest(streaming_bundles[name]).state
    frame = np.random.default_rng(2).integers(0, 256, (1, H, W, 3), dtype=np.uint8)
    scores, memory = load(tmp_path / "packed").step(frame)
    expected, _ = load(streaming_bundles[name], "openvino").step(frame)
    np.testing.assert_array_equal(scores, expected)
    assert list(memory) == [tensor.name for tensor in packed.state]


def test_its_outputs_are_those_of_the_network(streaming_bundles, streaming_models, assert_same_explanation, name):
    """`flowless explain` of a streaming bundle shows what it shows of the model."""
    model = streaming_models[name]
    made = Checkpoint(model=model, name=name, spec=model.spec, labels=("a", "b", "c", "d"), recipe={}, versions={}, metrics={})
    clips = np.random.default_rng(4).integers(0, 256, (2, *model.spec.shape), dtype=np.uint8)
    assert_same_explanation(CheckpointModel(made, path=Path()), BundleModel(streaming_bundles[name]), clips)

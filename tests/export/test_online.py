"""The online form of a model: exported, built for every target, and refused where its memory does not move."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from video_files import all_frames

from flowless.cli import main
from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.loading import load
from flowless.engines.streaming.memory import FRAME, MEMORY, NEXT_MEMORY, SCORES, first_memory
from flowless.engines.streaming.online import Online
from flowless.errors import FlowlessError
from flowless.export.build_engine import build
from flowless.export.precision.calibration import Calibration
from flowless.export.targets.build_options import BuildOptions
from flowless.export.verify.checks import Checks, EngineRefused
from flowless.pipeline.clip.preprocess import load_clip
from flowless.train.models import FusedRecognizer

N, H, W = 4, 40, 44


@pytest.fixture
def online_bundle(film_bundles, tmp_path) -> Path:
    """A bundle of one's own to build in."""
    return Path(shutil.copytree(film_bundles["online"], tmp_path / "bundle"))


def test_the_graph_says_what_it_takes(film_bundles):
    proto = onnx.load(film_bundles["online"] / "model.onnx")

    def message(items):
        return {item.name: [part.dim_param or part.dim_value for part in item.type.tensor_type.shape.dim] for item in items}

    assert message(proto.graph.input) == {FRAME: ["B", H, W, 3], MEMORY: ["B", N - 1, H, W, 3]}
    assert message(proto.graph.output) == {SCORES: ["B", 4], NEXT_MEMORY: ["B", N - 1, H, W, 3]}
    kinds = [item.type.tensor_type.elem_type for item in (*proto.graph.input, *proto.graph.output)]
    uint8 = onnx.TensorProto.UINT8
    assert kinds == [uint8, uint8, onnx.TensorProto.FLOAT, uint8]
    # TensorRT neither joins nor cuts bytes.
    assert {node.op_type for node in proto.graph.node if {FRAME, MEMORY} & set(node.input)} - {"Shape"} == {"Cast"}
    assert read_manifest(film_bundles["online"]).memory == N - 1


def test_every_model_of_single_frames_has_the_form(film_model, random_model):
    import torch

    from flowless.export.graph.online_graph import OnlineForm

    parts = {"tsn": random_model("tsn-r18"), "tsm": random_model("tsm-r18")}
    fused = FusedRecognizer(spec=parts["tsn"].spec, branches=parts).eval()  # pyright: ignore[reportArgumentType]
    film = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N + 2, 2, H, W, 3), dtype=np.uint8))
    for model in (fused, *parts.values(), film_model, random_model("pan-rgb-r18")):
        form = OnlineForm(model, name="model").eval()
        memory = torch.from_numpy(first_memory(film[0].numpy(), N))
        with torch.inference_mode():
            for place in range(len(film)):
                scores, memory = form(film[place], memory)
                window = film[[max(0, place - back) for back in reversed(range(N))]]
                torch.testing.assert_close(scores, model(window.swapaxes(0, 1)[:, :, None]), atol=1e-5, rtol=0)
        assert memory.dtype == torch.uint8


def test_what_has_no_such_form_is_refused(checkpoint, random_model, tmp_path, capsys):
    from flowless.export.graph.online_graph import OnlineForm

    assert main(["export", str(checkpoint), "--out", str(tmp_path / "bundle"), "--online"]) == 1
    assert "pan-lite-r18: its segments have 3 frames" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(FlowlessError, match="no memory to keep"):
        OnlineForm(random_model("tsn-r18", segments=1), name="tsn-r18")


def test_a_memory_that_does_not_move_is_refused(online_bundle, monkeypatch):
    """Each single step is right, and only a film shows that the frames in the memory are the wrong ones."""
    from flowless.export.targets import build_openvino

    honest = build_openvino.build_openvino

    def stuck(proto, folder, **rest):
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        last = next(node for node in changed.graph.node if NEXT_MEMORY in node.output)
        last.input[0] = next(node.output[0] for node in changed.graph.node if node.op_type == "Cast" and MEMORY in node.input)
        return honest(changed, folder, **rest)

    monkeypatch.setattr(build_openvino, "build_openvino", stuck)
    with pytest.raises(EngineRefused, match="differ from PyTorch"):
        build(online_bundle, target="openvino", options=BuildOptions(force=True))
    assert read_manifest(online_bundle).artefact("openvino", "fp32"), "the honest one is still there"


def test_int8_and_half_precision(online_bundle, shapes, train_index):
    calibration = Calibration(index=shapes / "train.index.jsonl", spec=read_manifest(online_bundle).spec, videos=8)
    record = build(online_bundle, target="openvino", precision="int8", checks=Checks(slower=True), calibration=calibration)
    assert record.status == "verified"
    assert record.figures["layers"]["convolution int8"] >= 19
    frames = list(all_frames(train_index.path_of(train_index.videos[0])))
    exact, low = (Online(load(online_bundle, "openvino", precision)) for precision in ("fp32", "int8"))
    scores, near = (np.stack([online.push(frame) for frame in frames]) for online in (exact, low))
    assert 0 < np.abs(scores - near).max() < 0.5 * np.abs(scores).max()
    half = build(online_bundle, target="tensorrt-rtx", precision="fp16")
    manifest = read_manifest(online_bundle)
    assert half.options["batch"] == [1, 1, 8]
    assert {(item.target, item.precision) for item in manifest.artefacts} >= {("openvino", "int8"), ("tensorrt-rtx", "fp16")}


def test_whole_videos_and_old_bundles(online_bundle, videos, capsys):
    """It scores whole clips as the offline graph does; a manifest without `memory` is an offline bundle's."""
    assert main(["predict", str(online_bundle), str(videos[0]), "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)
    online = Online(load(online_bundle))
    scores = [online.see(picture) for picture in load_clip(videos[0], online.engine.spec)[0]][-1]
    assert seen["top"][0]["label"] == online.engine.labels[scores.argmax()]
    path = online_bundle / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "memory": N}))
    with pytest.raises(FlowlessError, match=f"memory is {N}"):
        read_manifest(online_bundle)
    del document["memory"]
    path.write_text(json.dumps(document))
    assert read_manifest(online_bundle).memory == 0


def test_its_outputs_are_those_of_the_offline_form(film_bundles, assert_same_explanation):
    """`flowless explain` of an online bundle shows what it shows of the model."""
    from flowless.export.explain.introspection import BundleModel

    clips = np.random.default_rng(4).integers(0, 256, (2, N, 1, H, W, 3), dtype=np.uint8)
    assert_same_explanation(BundleModel(film_bundles["offline"]), BundleModel(film_bundles["online"]), clips)

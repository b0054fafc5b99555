"""Graphs in their precision: what was touched, what stayed, and that quantising the same twice gives the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.targets import Target
from flowless.errors import FlowlessError
from flowless.export.graph.export_graph import read_graph
from flowless.export.graph.pa_function import pa_nodes
from flowless.export.graph.pa_inline import fold_pa, inline_pa
from flowless.export.precision.calibration import Calibration, calibration_order
from flowless.export.precision.graph_cache import precise_graph
from flowless.export.precision.int8 import scales_hash
from flowless.export.precision.low_precision_nodes import backbone_nodes, float32_nodes, metadata_names
from flowless.export.precision.qdq import activation_pairs, quantise_shortcuts_only, share_scale_through_shifts, unsigned
from flowless.export.targets.target_graph import graph_for
from flowless.export.verify.reference import Reference
from flowless.pipeline.dataset.index import DatasetIndex

#: A model is trained first.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def manifest(learnt):
    return read_manifest(learnt("pan-lite-r18"))


@pytest.fixture(scope="module")
def graph(manifest):
    return read_graph(manifest.path_of(manifest.graph))


@pytest.fixture(scope="module")
def int8(manifest, calibration):
    return precise_graph(manifest, "int8", calibration)


def run(proto: onnx.ModelProto, clips: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"clip": clips})[0])


def test_the_backbone_and_nothing_else_loses_precision(graph):
    low = backbone_nodes(graph)
    kinds = Counter(node.op_type for node in graph.graph.node if node.name in low)
    assert kinds["Conv"] == 1 + 16 + 4  # the first convolution, those in blocks, the shortcuts, and none of PA's
    assert not {"Sub", "Div", "Softmax", "Gemm", "MatMul", "PersistenceOfAppearance", "ReduceMean"} & set(kinds)
    exact = set(float32_nodes(graph))
    assert {node.name for node in pa_nodes(graph)} <= exact
    assert low.isdisjoint(exact)
    assert len(low) + len(exact) == len(graph.graph.node)


def test_two_networks_have_two_backbones(learnt):
    proto = onnx.load(learnt("pan-full-r18") / "model.onnx")
    low = backbone_nodes(proto)
    assert sum(node.op_type == "Conv" and node.name in low for node in proto.graph.node) == 2 * (1 + 8 + 4)
    assert not any(node.op_type == "Gemm" and node.name in low for node in proto.graph.node)


def test_inlining_and_folding_back_gives_the_same_graph(graph):
    folded = fold_pa(inline_pa(graph), graph)
    onnx.checker.check_model(folded, full_check=True)
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in graph.graph.node]
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(run(folded, clips), run(graph, clips))


def test_changed_inlined_nodes_are_refused(graph):
    flat = inline_pa(graph)
    part = next(node for node in flat.graph.node if node.name.startswith("PA@0@") and node.op_type == "Mul")
    part.input[0] = "div"
    with pytest.raises(FlowlessError, match="changed the inlined nodes"):
        fold_pa(flat, graph)


@pytest.mark.parametrize(("kind", "type_"), [("fp16", onnx.TensorProto.FLOAT16), ("bf16", onnx.TensorProto.BFLOAT16)])
def test_half_precision_is_in_the_graph(kind, type_, manifest, graph):
    proto = precise_graph(manifest, kind).proto
    types = {item.name: item.data_type for item in proto.graph.initializer}
    filters = [types[node.input[1]] for node in proto.graph.node if node.op_type == "Conv"]
    assert set(filters) == {type_}
    assert len(pa_nodes(proto)) == 1
    assert types[pa_nodes(proto)[0].input[1]] == onnx.TensorProto.FLOAT
    assert [types[node.input[1]] for node in proto.graph.node if node.op_type == "Gemm"] == [onnx.TensorProto.FLOAT] * 3
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert {item.key: item.value for item in proto.metadata_props} == {item.key: item.value for item in graph.metadata_props}


def test_int8_quantises_what_a_gpu_fuses(int8):
    proto = int8.proto
    maker = {output: node for node in proto.graph.node for output in node.output}
    low = backbone_nodes(proto)
    for node in proto.graph.node:
        if node.op_type == "Conv" and node.name in low:
            assert [maker[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2, node.name
    adds = [node for node in proto.graph.node if node.op_type == "Add" and node.name in low]
    assert len(adds) == 8
    short = quantise_shortcuts_only(proto)
    maker = {output: node for node in short.graph.node for output in node.output}
    for node in [node for node in short.graph.node if node.op_type == "Add" and node.name in low]:
        kinds = sorted(maker[name].op_type for name in node.input)
        assert kinds == ["Conv", "DequantizeLinear"], "the block's last convolution, and the shortcut quantised"


def test_weights_are_stored_as_the_bytes_that_they_are(int8, graph):
    proto = int8.proto
    values = {item.name: item for item in proto.graph.initializer}
    maker = {output: node for node in proto.graph.node for output in node.output}
    floats = {item.name: numpy_helper.to_array(item) for item in graph.graph.initializer}
    low = backbone_nodes(graph)
    for node in [node for node in proto.graph.node if node.op_type == "Conv" and node.name in low]:
        restore = maker[node.input[1]]
        numbers, scale = (numpy_helper.to_array(values[name]) for name in restore.input[:2])
        assert numbers.dtype == np.int8
        original = next(item for item in graph.graph.node if item.name == node.name)
        exact = floats[original.input[1]]
        restored = numbers.astype(np.float64) * scale.reshape(-1, 1, 1, 1)
        assert (np.abs(restored - exact) <= 0.5001 * scale.reshape(-1, 1, 1, 1) + 1e-12).all(), node.name
    assert len(proto.SerializeToString()) < 0.4 * len(graph.SerializeToString())


def test_a_shift_keeps_the_grid(int8):
    """Quantising the shifted tensor again, on the same grid, changes nothing: another pass has nothing to do."""
    again = onnx.ModelProto()
    again.CopyFrom(int8.proto)
    assert share_scale_through_shifts(again) == 0
    maker = {output: node for node in again.graph.node for output in node.output}
    shifted = [pair for pair in activation_pairs(again) if maker[pair.quantise.input[0]].op_type == "Concat"]
    assert len(shifted) >= 8


def test_unsigned_numbers_are_finer(int8, manifest):
    """Scores of UINT8 lie nearer to PyTorch's than those of INT8; weights stay as they are."""
    reference = Reference.load(manifest.path_of(manifest.reference), manifest.spec)
    finer = unsigned(int8.proto)
    onnx.checker.check_model(finer, full_check=True)
    videos = reference.clips[:2]

    def error(proto):
        return float(np.sqrt(np.mean((run(proto, videos) - reference.scores[:2]) ** 2)))

    assert error(finer) < error(int8.proto)
    types = Counter(
        numpy_helper.to_array(item).dtype.name
        for item in finer.graph.initializer
        if item.name in {pair.quantise.input[2] for pair in activation_pairs(finer)}
    )
    assert set(types) == {"uint8"}


@pytest.mark.slow
def test_a_video_that_calibration_leaves_out_is_named_on_the_terminal(manifest, calibration, tmp_path, capsys):
    """ModelOpt's output is swallowed while it calibrates; what flowless has to say is not."""
    index = DatasetIndex.load(calibration.index)
    first = calibration_order(index, seed=calibration.seed)[0]
    videos = [replace(video, path=str(index.path_of(video))) for video in index.videos]
    (tmp_path / "bad.mp4").write_text("no video")
    place = [video.id for video in videos].index(first.id)
    videos[place] = replace(videos[place], path=str(tmp_path / "bad.mp4"))
    path = tmp_path / "bad.index.jsonl"
    replace(index, root=tmp_path, videos=tuple(videos)).save(path)
    made = precise_graph(manifest, "int8", replace(calibration, index=path, used=[], skipped=[]))
    assert made.calibration is not None
    assert first.id not in made.calibration["used"]
    said = capsys.readouterr()
    assert "calibration: left out" in said.err
    assert "bad.mp4" in said.err
    assert "modelopt" not in (said.out + said.err).lower()


def test_calibrating_twice_gives_the_same_scales(int8, manifest, calibration, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWLESS_CACHE", str(tmp_path))
    again = precise_graph(manifest, "int8", replace(calibration, used=[], skipped=[]))
    assert again.calibration == int8.calibration
    assert scales_hash(again.proto) == scales_hash(int8.proto)
    fewer = precise_graph(manifest, "int8", replace(calibration, videos=2, used=[], skipped=[]))
    assert fewer.calibration is not None
    assert len(fewer.calibration["used"]) == 2
    assert scales_hash(fewer.proto) != scales_hash(int8.proto)


def test_memory_stays_flat(manifest, shapes, tmp_path):
    """Calibrating on twenty-four videos takes no more memory than on two. (On 300 it took 2 MB more, of 736.)"""
    code = """
import resource, sys
from pathlib import Path
from flowless.engines.bundle.manifest import read_manifest
from flowless.export.precision.calibration import Calibration
from flowless.export.precision.graph_cache import precise_graph
bundle, index = sys.argv[1:]
manifest = read_manifest(bundle)
for videos in (2, 24):
    made = precise_graph(manifest, "int8", Calibration(index=Path(index), spec=manifest.spec, videos=videos))
    print(len(made.calibration["used"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    command = [sys.executable, "-c", code, str(manifest.folder), str(shapes / "train.index.jsonl")]
    env = {**os.environ, "FLOWLESS_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    (few, before), (many, after) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (2, 24)
    # One clip's activations take about 1.7 MB here: twenty-two kept clips would show.
    assert after < before + 15_000


def test_a_video_that_cannot_be_read_is_replaced_and_recorded(manifest, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWLESS_CACHE", str(tmp_path / "cache"))
    broken = shutil.copytree(shapes, tmp_path / "shapes")
    path = broken / "train.index.jsonl"
    index = DatasetIndex.load(path)
    first = index.path_of(calibration_order(index, seed=0)[0])
    first.write_bytes(b"no video")
    made = precise_graph(manifest, "int8", Calibration(index=path, spec=manifest.spec, videos=3))
    assert made.calibration is not None
    assert len(made.calibration["used"]) == 3
    assert len(made.calibration["skipped"]) == 1
    assert first.name in made.calibration["skipped"][0]
    for video in index.videos:
        index.path_of(video).write_bytes(b"no video")
    with pytest.raises(FlowlessError, match="none of its videos could be read"):
        precise_graph(manifest, "int8", Calibration(index=path, spec=manifest.spec, videos=2))


def test_calibration_goes_through_the_classes_in_turn(train_index):
    order = calibration_order(train_index, seed=0)
    assert sorted(record.id for record in order) == sorted(record.id for record in train_index.videos)
    assert len({record.label for record in order[:12]}) == 12
    assert order == calibration_order(train_index, seed=0)
    assert order != calibration_order(train_index, seed=1)


@pytest.mark.parametrize("wrong", [{"videos": 0}, {"method": "guess"}])
def test_a_calibration_on_nothing_is_refused(calibration, wrong):
    with pytest.raises(FlowlessError, match=str(next(iter(wrong.values())))):
        replace(calibration, **wrong)


def test_a_damaged_cache_is_made_again(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWLESS_CACHE", str(tmp_path))
    first = precise_graph(manifest, "fp16")
    (kept,) = (tmp_path / "graphs").glob("*.onnx")
    kept.write_bytes(b"rubbish")
    assert precise_graph(manifest, "fp16").proto == first.proto
    assert kept.stat().st_size > 100_000


def test_a_result_that_meets_floats_is_rounded_for_onnxruntime_alone(learnt, calibration):
    """STM's modules stay out of INT8; ONNX Runtime has no INT8 convolution whose result is a float, TensorRT has."""
    manifest = read_manifest(learnt("stm-r18"))
    proto = precise_graph(manifest, "int8", replace(calibration, spec=manifest.spec, used=[], skipped=[])).proto
    meeting = {node for node, _ in json.loads(next(item.value for item in proto.metadata_props if item.key == "flowless.qdq_boundaries"))}
    assert meeting
    assert meeting <= metadata_names(proto, "unquantised")
    assert not any(node.op_type == "MaxPool" and node.name.endswith(".boundary.pool") for node in proto.graph.node)
    wanted: dict[Target, set[str]] = {
        "onnxruntime": {"DequantizeLinear"},
        "openvino": {"Conv", "Relu"},
        "tensorrt": {"Conv", "Relu"},
    }
    for target, met in wanted.items():
        graph = graph_for(proto, target=target, precision="int8")
        onnx.checker.check_model(graph, full_check=True)
        maker = {output: node.op_type for node in graph.graph.node for output in node.output}
        convolutions = {"Conv", "Relu", "DequantizeLinear"}
        read = {maker.get(name) for node in graph.graph.node if node.name in meeting for name in node.input}
        assert read & convolutions <= met, target
        assert read & met, target

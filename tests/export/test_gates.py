"""The gates of a build: each seeded fault is caught by one of them, exit code 3, and nothing is kept."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import verdicts
from onnx import numpy_helper

from flowless.cli import main
from flowless.engines.backends import onnxruntime_cuda
from flowless.engines.backends.openvino_core import computes_in
from flowless.engines.bundle.manifest import read_manifest
from flowless.errors import FlowlessError
from flowless.export.build_engine import build
from flowless.export.precision import graph_cache
from flowless.export.targets import build_openvino
from flowless.export.targets.build_options import BuildOptions
from flowless.export.verify import speed
from flowless.export.verify.checks import Checks, EngineRefused
from flowless.export.verify.inspect_cpu import inspect_onnxruntime
from flowless.export.verify.parity import TOLERANCE, Tolerance
from flowless.export.verify.speed import compare_speed

KEEP = Checks(slower=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def constant(proto, name):
    return next(item for item in proto.graph.initializer if item.name == name)


def change(proto, name, by):
    item = constant(proto, name)
    item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(by(numpy_helper.to_array(item))), name))


def shifts_flipped(proto):
    """The whole network looks forward where it should look back."""
    concats = [node for node in proto.graph.node if node.op_type == "Concat" and len(node.input) == 3]
    assert concats
    for node in concats:
        node.input[0], node.input[1] = node.input[1], node.input[0]


def mean_wrong(proto):
    """Normalised as for pixels from -1 to 1."""
    node = next(node for node in proto.graph.node if node.op_type == "Sub")
    change(proto, node.input[1], np.zeros_like)


def weight_transposed(proto):
    """Square filters with inputs and outputs exchanged."""
    read = {node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
    read |= {node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    square = [item for item in proto.graph.initializer if len(item.dims) == 4 and item.dims[0] == item.dims[1] and item.name in read]
    assert square
    for item in square:
        change(proto, item.name, lambda weight: weight.swapaxes(0, 1))


def labels_swapped(proto):
    """The classifier's first two rows exchanged."""
    node = [node for node in proto.graph.node if node.op_type == "Gemm"][-1]

    def swapped(value):
        axis = next(place for place, size in enumerate(value.shape) if size == 12)
        order = [1, 0, *range(2, 12)]
        return np.take(value, order, axis)

    for name in node.input[1:]:
        change(proto, name, swapped)


FAULTS = (shifts_flipped, mean_wrong, weight_transposed, labels_swapped)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_fault_between_the_graph_and_the_engine_is_caught(fault, precision, learnt_bundle, calibration, monkeypatch):
    """The graph that the target gets has a fault in it; the fp32 engine that it is compared with has none."""
    if precision == "bf16" and computes_in("bf16") != "bf16":
        pytest.skip("OpenVINO does not compute in bf16 on this processor, so no bf16 engine gets as far as its scores")
    build(learnt_bundle, target="openvino", checks=KEEP)
    honest = build_openvino.build_openvino

    def faulty(proto, folder, **rest):
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        fault(changed)
        return honest(changed, folder, **rest)

    monkeypatch.setattr(build_openvino, "build_openvino", faulty)
    before = contents(learnt_bundle)
    with pytest.raises(EngineRefused) as caught:
        build(
            learnt_bundle,
            target="openvino",
            precision=precision,
            checks=KEEP,
            calibration=calibration,
            options=BuildOptions(force=True),
        )
    assert caught.value.gate == "parity"
    assert contents(learnt_bundle) == before


@pytest.mark.slow
def test_int8_is_kept_with_its_calibration_record(learnt_bundle, calibration):
    record = build(learnt_bundle, target="openvino", precision="int8", checks=KEEP, calibration=calibration)
    manifest = read_manifest(learnt_bundle)
    assert record.status == "verified"
    assert manifest.artefact("openvino", "fp32") is not None, "its baseline was built first"
    assert record.figures["layers"]["convolution int8"] >= 20
    assert record.figures["above"] == "fp32"
    assert manifest.calibration is not None
    assert len(manifest.calibration["used"]) == manifest.calibration["videos"] == 12
    assert manifest.calibration["method"] == "max"
    assert len(manifest.calibration["scales"]) == 64
    manifest.check(manifest.files)


@pytest.mark.slow
def test_top1_may_not_fall(learnt_bundle, calibration, shapes, monkeypatch):
    """An engine whose scores never change loses accuracy; the limits of parity are widened, so that the gate of accuracy refuses it."""
    monkeypatch.setitem(TOLERANCE, ("int8", "CPU"), Tolerance(largest=1e9, snr=-1e9))
    honest = build_openvino.build_openvino

    def constant_scores(proto, folder, **rest):
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        node = [node for node in changed.graph.node if node.op_type == "Gemm"][-1]
        change(changed, node.input[1], np.zeros_like)
        return honest(changed, folder, **rest)

    build(learnt_bundle, target="openvino", checks=KEEP)
    monkeypatch.setattr(build_openvino, "build_openvino", constant_scores)
    checks = replace(KEEP, data=shapes / "train.index.jsonl")
    with pytest.raises(EngineRefused, match=r"top-1 falls from .* on 24 videos, by 91\.7 points") as caught:
        build(learnt_bundle, target="openvino", precision="int8", checks=checks, calibration=calibration)
    assert caught.value.gate == "accuracy"
    kept = build(learnt_bundle, target="openvino", precision="int8", checks=replace(checks, max_drop=95), calibration=calibration)
    assert (kept.figures["top1"], kept.figures["fp32_top1"], kept.figures["videos"]) == (pytest.approx(2 / 24, abs=1e-4), 1.0, 24)


@pytest.mark.slow
def test_stricter_limits_verify_an_engine_again(learnt_bundle, shapes):
    """An engine that was kept without measuring its top-1 is built again once its top-1 must be checked."""
    first = build(learnt_bundle, target="openvino")
    assert "top1" not in first.figures
    checked = build(learnt_bundle, target="openvino", checks=Checks(data=shapes / "train.index.jsonl"))
    assert checked.figures["top1"] == 1.0
    assert build(learnt_bundle, target="openvino", checks=Checks(data=shapes / "train.index.jsonl")) == checked


@pytest.mark.slow
def test_what_is_no_faster_is_not_kept(learnt_bundle, calibration, monkeypatch):
    """The latencies are given: the candidate is slower, then faster than fp32."""
    pace = {"int8": 9.0, "fp32": 3.0}

    monkeypatch.setattr(speed, "interleaved_ms", lambda runners, clip: {name: pace[name] for name in runners})
    build(learnt_bundle, target="onnxruntime")
    before = contents(learnt_bundle)
    with pytest.raises(EngineRefused, match="no faster here than fp32: 9 ms a clip, fp32 3 ms") as caught:
        build(learnt_bundle, target="onnxruntime", precision="int8", calibration=calibration)
    assert caught.value.gate == "speed"
    assert contents(learnt_bundle) == before
    assert build(learnt_bundle, target="onnxruntime", precision="int8", checks=KEEP, calibration=calibration).status == "verified"
    pace["int8"] = 2.0
    kept = build(learnt_bundle, target="onnxruntime", precision="int8", calibration=calibration, options=BuildOptions(force=True))
    assert (kept.figures["latency_ms_p50"], kept.figures["above_latency_ms_p50"]) == (2.0, 3.0)


def test_it_must_be_faster_than_the_fastest_kept_and_not_than_the_next_precision():
    """bf16 was kept although it is slower than fp32: an int8 engine between the two is no faster than what the bundle has."""
    slow, middle, fast = [lambda clip, ms=ms: time.sleep(ms / 1e3) for ms in (24, 12, 2)]
    clip = np.zeros((1, 1, 1, 1, 1, 3), np.uint8)
    between = compare_speed(middle, {"fp32": fast, "bf16": slow}, clip, precision="int8")
    assert (between.fastest, between.faster) == ("fp32", False)
    assert between.fastest_ms is not None
    assert between.fastest_ms < between.own_ms < 24
    best = compare_speed(fast, {"fp32": middle, "bf16": slow}, clip, precision="int8")
    assert (best.fastest, best.faster) == ("fp32", True)
    alone = compare_speed(slow, {}, clip, precision="fp32")
    assert (alone.fastest, alone.fastest_ms, alone.faster) == (None, None, True)


def test_an_engine_that_computes_in_something_else_is_named(exported, tmp_path, capsys):
    """ONNX Runtime has no half-precision convolution on x86: it casts back to fp32 without a word. On Arm it may have."""
    if verdicts.runs_in("onnxruntime", "fp16") != "fp32":
        pytest.skip("ONNX Runtime computes in fp16 on this processor")
    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    before = contents(bundle)
    assert main(["build", str(bundle), "--target", "onnxruntime", "--precision", "fp16"]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "13 of 13 convolutions run in fp32" in said
    assert "The new engine was not kept" in said
    assert contents(bundle) == before


def test_onnxruntimes_layers_are_those_of_the_session_that_runs(tmp_path, monkeypatch):
    """The CUDA provider fuses no Q/DQ pairs: where it runs, an int8 graph computes in fp32. A session without fusions replaces it here."""
    path = tmp_path / "int8.onnx"
    path.write_bytes(verdicts.bare_convolution("int8").SerializeToString())

    def without_fusions(model, options):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime_cuda, "why_not_cuda", lambda: None)
    monkeypatch.setattr(onnxruntime_cuda, "open_on_cuda", without_fusions)
    assert [layer.precision for layer in inspect_onnxruntime(path)] == ["fp32"]


@pytest.mark.gpu
def test_onnxruntime_computes_in_fp16_on_a_gpu(exported, tmp_path):
    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    record = build(bundle, target="onnxruntime", precision="fp16", checks=Checks(slower=True, parity=False))
    assert record.figures["layers"]["convolution fp16"] == 13


@pytest.mark.slow
def test_a_convolution_left_in_floating_point_is_named(learnt_bundle, calibration, monkeypatch):
    """One convolution's input is not quantised: its layer, and no other, runs in fp32."""
    from flowless.export.targets import target_graph

    honest = target_graph.unsigned

    def half_quantised(proto):
        result = honest(proto)
        node = next(node for node in result.graph.node if node.op_type == "Conv" and "DequantizeLinear" in node.input[0])
        pairs = {node.output[0]: node for node in result.graph.node}
        node.input[0] = pairs[pairs[node.input[0]].input[0]].input[0]
        return result

    monkeypatch.setattr(target_graph, "unsigned", half_quantised)
    with pytest.raises(EngineRefused, match="1 of 21 convolutions run in fp32") as caught:
        build(learnt_bundle, target="onnxruntime", precision="int8", checks=KEEP, calibration=calibration)
    assert caught.value.gate == "layers"


@pytest.mark.slow
def test_the_cache_is_keyed_by_content(learnt, calibration, tmp_path):
    manifest = read_manifest(learnt("pan-lite-r18"))
    key = graph_cache.graph_key(manifest, "int8", calibration)
    assert key == graph_cache.graph_key(manifest, "int8", replace(calibration))
    copied = tmp_path / "elsewhere.jsonl"
    shutil.copy(calibration.index, copied)
    assert key == graph_cache.graph_key(manifest, "int8", replace(calibration, index=copied)), "content, not place"
    for other in (replace(calibration, videos=11), replace(calibration, method="entropy"), replace(calibration, seed=1)):
        assert key != graph_cache.graph_key(manifest, "int8", other)
    assert key != graph_cache.graph_key(manifest, "fp16", calibration)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt-rtx"])
def test_an_operator_that_a_target_lacks_is_named(target, tmp_path):
    """Whatever the target, the error of a build says which operator it does not take."""
    from onnx import TensorProto, helper

    from flowless.engines.targets import find_target
    from flowless.export.targets.builders import builder_of
    from flowless.export.verify.inspect_engine import inspect

    if find_target(target).why_missing():
        pytest.skip(f"{target} is not installed")
    clip = helper.make_tensor_value_info("clip", TensorProto.UINT8, ["B", 2, 2, 8, 8, 3])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 2, 2, 8, 8, 3])
    cast = helper.make_node("Cast", ["clip"], ["pixels"], name="cast", to=TensorProto.FLOAT)
    foreign = helper.make_node("Sharpen", ["pixels"], ["scores"], name="sharpener", domain="elsewhere")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)]
    proto = helper.make_model(helper.make_graph([cast, foreign], "main", [clip], [scores]), opset_imports=opsets, ir_version=10)
    with pytest.raises(FlowlessError, match=rf"^{target} .*\bSharpen\b.*Build another"):
        inspect(builder_of(target)(proto, tmp_path, precision="fp32", options=BuildOptions()), tmp_path, proto)

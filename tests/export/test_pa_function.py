"""The ONNX body of the PA op against the paper's formula in float64."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowless.engines.backends.openvino_core import openvino_core
from flowless.export.graph.export_graph import inlined
from flowless.export.graph.pa_function import DOMAIN, OP, OPSET, pa_function


def model_of(shape, weight, *, eps=1e-6, eps_inside=False):
    node = helper.make_node(
        OP, ["clip", "weight"], ["motion"], domain=DOMAIN, eps=eps, eps_inside=int(eps_inside), plugin_version="1", plugin_namespace=DOMAIN
    )
    rows, columns = shape[-2:]
    graph = helper.make_graph(
        [node],
        "pa",
        [helper.make_tensor_value_info("clip", TensorProto.FLOAT, ["B", *shape[1:]])],
        [helper.make_tensor_value_info("motion", TensorProto.FLOAT, ["B", shape[1], shape[2] - 1, rows, columns])],
        [numpy_helper.from_array(weight, "weight")],
    )
    body = pa_function(filters=weight.shape[0], kernel=weight.shape[-1], eps_inside=eps_inside)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run_onnxruntime(model, clip):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"clip": clip})[0])


def run_openvino(model, clip):
    core = openvino_core()
    compiled = core.compile_model(core.read_model(inlined(model).SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled({0: clip})[0])


def frames(kind, shape):
    rng = np.random.default_rng(3)
    if kind == "still":
        return np.broadcast_to(rng.normal(size=shape)[:, :, :1], shape).astype(np.float32)
    if kind == "impulse":
        clip = np.zeros(shape, np.float32)
        clip[:, :, 1, :, shape[-2] // 2, shape[-1] // 2] = 255.0
        clip[:, :, -1, 0, 0, 0] = 255.0
        return clip
    return rng.integers(0, 256, shape).astype(np.float32)


def weights(filters=8, kernel=7):
    return np.random.default_rng(1).normal(0, 0.01, (filters, 3, kernel, kernel)).astype(np.float32)


@pytest.mark.parametrize("run", [run_onnxruntime, run_openvino])
@pytest.mark.parametrize("size", [(16, 16), (15, 17), (8, 9), (7, 7), (1, 1), (2, 5)])
@pytest.mark.parametrize("kind", ["noise", "still", "impulse"])
def test_body_is_the_papers_formula(run, size, kind, reference):
    clip = frames(kind, (2, 3, 4, 3, *size))
    weight = weights()
    expected = reference.persistence(clip, weight, None, 1e-6)
    found = run(model_of(clip.shape, weight), clip)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("run", [run_onnxruntime, run_openvino])
def test_eps_inside_the_difference(run, reference):
    clip, weight = frames("still", (1, 2, 3, 3, 9, 10)), weights()
    found = run(model_of(clip.shape, weight, eps=1e-3, eps_inside=True), clip)
    np.testing.assert_allclose(found, np.sqrt(8e-6), rtol=1e-5)
    clip = frames("noise", (1, 2, 3, 3, 9, 10))  # moving: the sign of the difference matters
    found = run(model_of(clip.shape, weight, eps=1e-3, eps_inside=True), clip)
    np.testing.assert_allclose(found, reference.persistence(clip, weight, None, 1e-3, eps_inside=True), rtol=1e-5)


def test_other_filters_and_two_frames(reference):
    clip, weight = frames("noise", (1, 1, 2, 3, 13, 10)), weights(filters=3, kernel=5)
    expected = reference.persistence(clip, weight, None, 1e-12)
    np.testing.assert_allclose(run_onnxruntime(model_of(clip.shape, weight, eps=1e-12), clip), expected, rtol=2e-5, atol=1e-5)


def test_reference_agrees_with_the_training_op(reference):
    import torch

    import flowless.train.pa.persistence  # noqa: F401

    clip, weight = frames("noise", (2, 2, 4, 3, 15, 18)).astype(np.float64), weights().astype(np.float64)
    found = torch.ops.flowless.persistence(torch.from_numpy(clip), torch.from_numpy(weight), 1e-6)
    np.testing.assert_allclose(found.numpy(), reference.persistence(clip, weight, None, 1e-6), rtol=1e-9)


def test_reference_sees_a_shifted_filter(reference):
    """The reference is no mirror of the body: a filter off by one pixel shows."""
    clip, weight = frames("noise", (1, 1, 2, 3, 12, 12)), weights()
    shifted = np.roll(weight, 1, axis=-1)
    found = run_onnxruntime(model_of(clip.shape, shifted), clip)
    assert np.abs(found - reference.persistence(clip, weight, None, 1e-6)).max() > 0.1


def test_tensorrt_rtx_takes_the_function():
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model_of((1, 2, 4, 3, 15, 16), weights()).SerializeToString()), parser.get_error(0).desc()
    assert tuple(network.get_output(0).shape)[1:] == (2, 3, 15, 16)

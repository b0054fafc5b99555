"""The ONNX file: its contract, and that it says nothing about the machine that wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from flowless.errors import FlowlessError
from flowless.export.graph import export_graph
from flowless.export.graph.pa_function import pa_nodes
from flowless.export.targets.openvino_layout import differences_first
from flowless.pipeline.clip.spec import ClipSpec


@pytest.fixture(scope="module")
def proto(exported):
    return onnx.load(exported / "model.onnx")


def test_input_and_output(proto):
    (clip,), (scores,) = proto.graph.input, proto.graph.output
    dims = clip.type.tensor_type.shape.dim
    assert (clip.name, clip.type.tensor_type.elem_type) == ("clip", onnx.TensorProto.UINT8)
    assert dims[0].dim_param
    assert [dim.dim_value for dim in dims[1:]] == [4, 3, 48, 49, 3]
    assert (scores.name, scores.type.tensor_type.elem_type) == ("scores", onnx.TensorProto.FLOAT)
    assert scores.type.tensor_type.shape.dim[1].dim_value == 6
    assert {item.domain: item.version for item in proto.opset_import} == {"": 20, "flowless": 1}


def test_the_cast_comes_first(proto):
    readers = [node.op_type for node in proto.graph.node if "clip" in node.input]
    assert set(readers) <= {"Cast", "Shape"}


def test_the_pa_node_and_its_body(proto):
    (node,) = pa_nodes(proto)
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    assert attributes["plugin_version"] == b"1"
    assert attributes["plugin_namespace"] == b"flowless"
    assert attributes["eps"] == pytest.approx(1e-12)
    (body,) = proto.functions
    assert (body.domain, body.name) == ("flowless", "PersistenceOfAppearance")
    # The scale is folded into the filters: the body sees pixels from 0 to 255, whose differences are exact integers.
    producer = {output: item.op_type for item in proto.graph.node for output in item.output}
    assert producer[node.input[0]] == "Transpose"


def test_metadata(proto, exported):
    about = {item.key: item.value for item in proto.metadata_props}
    manifest = json.loads((exported / "manifest.json").read_text())
    assert ClipSpec.from_dict(json.loads(about["flowless.clip"])).to_dict() == manifest["spec"]
    assert json.loads(about["flowless.labels"]) == manifest["labels"]
    assert about["flowless.model"] == "pan-lite-r18"
    assert "torch" in json.loads(about["flowless.versions"])


def test_no_path_of_this_machine(exported):
    content = (exported / "model.onnx").read_bytes()
    for trace in (str(Path.cwd()), str(Path.home()), "site-packages", ".py", "File "):
        assert trace.encode() not in content, trace


def test_what_is_no_graph(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff\xff nothing of the kind")
    with pytest.raises(FlowlessError, match=r"model\.onnx: not a readable ONNX file"):
        export_graph.read_graph(path)


def test_differences_before_layout_are_the_same_numbers(proto):
    """The rewrite for OpenVINO finds PA's difference, and changes no score."""
    import onnxruntime

    before, after = export_graph.inlined(proto), export_graph.inlined(proto)
    assert differences_first(after) == 1
    assert len(after.graph.node) == len(before.graph.node) + 1
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 48, 49, 3), dtype=np.uint8)
    scores = [
        np.asarray(onnxruntime.InferenceSession(flat.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"clip": clip})[0])
        for flat in (before, after)
    ]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5, atol=1e-6)

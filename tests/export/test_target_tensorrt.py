"""TensorRT and TensorRT-RTX: what is built, what is refused and how, and what an inspection sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowless import cuda_driver
from flowless.engines.backends.tensorrt_process import PLUGIN, tensorrt_process
from flowless.engines.targets import Target, targets_with
from flowless.errors import FlowlessError
from flowless.export.graph import pa_function
from flowless.export.targets import build_tensorrt as build_tensorrt_module
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.build_tensorrt import build_tensorrt
from flowless.export.targets.stop_build import progress_monitor
from flowless.export.targets.tensorrt_config import merge_timing_cache
from flowless.export.verify.inspect_tensorrt import inspect_build, inspect_graph, read_engine_information
from flowless.export.verify.layer_record import Layer, differing_layers, inspection, wrong_layers
from flowless.files import whole_folder

RTX: Target = "tensorrt-rtx"
pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def proto(exported) -> onnx.ModelProto:
    return onnx.load(exported / "model.onnx")


def copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    return made


# ---- building


def test_what_it_was_built_for_is_recorded(proto, tmp_path):
    options = BuildOptions(batch=(1, 2, 4), compute_capabilities=(86, 89, 86), workspace=256, optimization_level=2)
    record = build_tensorrt(proto, tmp_path, target=RTX, precision="fp32", options=options)
    assert record.files == ("model.engine",)
    assert (tmp_path / "model.engine").stat().st_size > 100_000
    assert record.versions["tensorrt_rtx"].startswith("1.")
    assert record.options["platform"].count("-") == 1
    wanted = {"batch": [1, 2, 4], "compute_capabilities": [86, 89], "portable": False, "stripped": False}
    assert record.options.items() >= {**wanted, "workspace": 256, "optimization_level": 2}.items()


def test_portable_is_what_rtx_is_by_itself(proto, tmp_path):
    record = build_tensorrt(proto, tmp_path, target=RTX, precision="fp32", options=BuildOptions(portable=True))
    assert (record.options["portable"], record.options["compute_capabilities"]) == (True, [])


def test_a_timing_cache_is_left_alone_where_nothing_is_timed(proto, tmp_path):
    cache = tmp_path / "cache" / "timing"
    record = build_tensorrt(proto, tmp_path, target=RTX, precision="fp32", options=BuildOptions(timing_cache=cache))
    assert record.options["timing_cache"] == "TensorRT-RTX times nothing when it builds"
    assert not cache.parent.exists()


def test_timing_caches_are_merged_whole(tmp_path):
    """By TensorRT-RTX's form of the same interface: a file appears, survives another build, and a damaged one is replaced."""
    process = tensorrt_process(RTX)
    config = process.trt.Builder(process.logger).create_builder_config()
    path = tmp_path / "caches" / "timing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        merge_timing_cache(config, path)
        first = path.read_bytes()
        assert first
        merge_timing_cache(config, path)
        path.write_bytes(b"rubbish")
        merge_timing_cache(config, path)
    assert path.read_bytes() == first
    assert [item.name for item in path.parent.iterdir()] == ["timing"]


def test_ctrl_c_leaves_nothing(proto, tmp_path, monkeypatch):
    """Pressed while the builder runs: it stops, the folder does not appear, and Ctrl-C means again what it meant before."""
    pressed = []

    def pressing(trt, stop):
        real = progress_monitor(trt, stop)

        class Monitor(trt.IProgressMonitor):
            def __init__(self):
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name, parent_phase, num_steps):
                real.phase_start(phase_name, parent_phase, num_steps)

            def phase_finish(self, phase_name):
                real.phase_finish(phase_name)

            def step_complete(self, phase_name, step):
                pressed.append(phase_name)
                if len(pressed) == 1:
                    signal.raise_signal(signal.SIGINT)
                return real.step_complete(phase_name, step)

        return Monitor()

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(build_tensorrt_module, "progress_monitor", pressing)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "engine") as draft:
        build_tensorrt(proto, draft, target=RTX, precision="fp32", options=BuildOptions())
    assert len(pressed) == 1, "the builder went on"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is before


# ---- refusing


def foreign_operator(proto):
    proto.graph.node[5].op_type = "Foo"
    return proto.graph.node[5].name, "Foo"


def dangling_input(proto):
    node = next(node for node in proto.graph.node if node.op_type == "Relu")
    node.input[0] = "nowhere"
    return node.name, "Relu"


def foreign_operator_in_a_function(proto):
    proto.functions[0].node[3].op_type = "Foo"
    return next(node.name for node in proto.graph.node if node.domain == "flowless"), "Foo"


def no_function(proto):
    del proto.functions[:]
    return next(node.name for node in proto.graph.node if node.domain == "flowless"), "PersistenceOfAppearance"


@pytest.mark.parametrize("fault", [foreign_operator, dangling_input, foreign_operator_in_a_function, no_function])
def test_a_refused_graph_is_one_paragraph(fault, proto, tmp_path, capfd):
    """It names operator and node; TensorRT prints nothing."""
    broken = copy(proto)
    node, operator = fault(broken)
    with pytest.raises(FlowlessError) as caught:
        build_tensorrt(broken, tmp_path, target=RTX, precision="fp32", options=BuildOptions())
    assert f"operator {operator} of node {node!r}: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("openvino", {"portable": True}, r"--portable: openvino .* --target tensorrt and --target tensorrt-rtx have it"),
        ("onnxruntime", {"strip_weights": True}, r"--strip-weights: onnxruntime .* --target tensorrt "),
        ("tensorrt", {"compute_capabilities": (86,)}, r"--compute-capability: tensorrt .* --target tensorrt-rtx has it"),
        (RTX, {"plugin_library": Path("pa.so")}, r"--plugin-library: tensorrt-rtx .* --target tensorrt has it"),
        (RTX, {"pa": "plugin"}, r"--pa: tensorrt-rtx .* --target tensorrt has it"),
    ],
)
def test_an_option_that_a_target_lacks(target, options, says):
    asked = BuildOptions(**options)
    with pytest.raises(FlowlessError, match=says):
        asked.check(target)
    assert asked.for_target(target) == BuildOptions()
    for having in targets_with(next(iter(options))):
        asked.check(having)
        assert asked.for_target(having) == asked


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"portable": True, "compute_capabilities": (86, 89)}, "--compute-capability 86 89"),
        ({"workspace": 0}, "in MiB and must be at least 1"),
        ({"optimization_level": 6}, "from 0 to 5"),
    ],
)
def test_options_that_cannot_be(options, says):
    with pytest.raises(FlowlessError, match=says):
        BuildOptions(**options)


def test_without_a_gpu_rtx_keeps_its_weights(proto, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: None)
    with pytest.raises(FlowlessError, match="only where there is a GPU"):
        build_tensorrt(proto, tmp_path, target=RTX, precision="fp32", options=BuildOptions(strip_weights=True))
    with pytest.raises(FlowlessError, match="there is no NVIDIA GPU here"):
        build_tensorrt(proto, tmp_path, target="tensorrt", precision="fp32", options=BuildOptions())


def test_a_build_changes_no_module_and_no_environment_variable(proto, tmp_path, monkeypatch):
    """Not even while it runs: another thread may use TensorRT at the same time."""
    modules, environment, seen = dict(sys.modules), dict(os.environ), []

    def observing(trt, stop):
        seen.append([name for name, module in modules.items() if sys.modules.get(name) is not module])
        seen.append({name for name, value in os.environ.items() if environment.get(name) != value})
        return progress_monitor(trt, stop)

    monkeypatch.setattr(build_tensorrt_module, "progress_monitor", observing)
    build_tensorrt(proto, tmp_path, target=RTX, precision="fp32", options=BuildOptions())
    assert seen == [[], set()]


def test_one_name_for_the_plugin():
    """The runtime does not import export, so it has the plugin's name a second time."""
    assert (pa_function.OP, str(pa_function.OP_VERSION), pa_function.DOMAIN) == PLUGIN


# ---- inspecting


def quantised_block(*, data: bool = True, weights: bool = True, skip: bool = True, moved: bool = False) -> onnx.ModelProto:
    """A convolution with a skip connection: `data`, `weights` and `skip` say what is quantised, `moved` puts a slice in between."""
    random = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(random.normal(size=(8, 8, 3, 3)).astype(np.float32), "weight"),
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
        *(numpy_helper.from_array(np.array([value], np.int64), f"i{value}") for value in (0, 1, 8)),
    ]
    nodes = []

    def quantised(name: str, wanted: bool) -> str:
        if wanted:
            nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"], name=f"{name}_Q"))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_dq"], name=f"{name}_DQ"))
        return f"{name}_dq" if wanted else name

    source = quantised("x", data)
    if moved:
        nodes.append(helper.make_node("Slice", [source, "i0", "i8", "i1"], ["moved"], name="slice"))
        source = "moved"
    nodes.append(helper.make_node("Conv", [source, quantised("weight", weights)], ["y"], name="conv", pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("Relu", ["x"], ["branch"], name="relu"))
    nodes.append(helper.make_node("Add", ["y", quantised("branch", skip)], ["z"], name="add"))
    shape = ["B", 8, 16, 16]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ({}, ()),
        ({"moved": True}, ()),
        (
            {"data": False},
            ("convolution conv runs in fp32 (of its two inputs only the weights are quantised), not int8",),
        ),
        (
            {"weights": False, "moved": True},
            ("convolution conv runs in fp32 (of its two inputs only the data are quantised), not int8",),
        ),
        ({"skip": False}, ("residual add add runs in fp32, not int8",)),
        (
            {"data": False, "weights": False, "skip": False},
            ("convolution conv runs in fp32, not int8", "residual add add runs in fp32, not int8"),
        ),
    ],
)
def test_quantisation_that_tensorrt_cannot_fuse(fault, wrong):
    assert wrong_layers(inspect_graph(quantised_block(**fault), target=RTX), "int8") == wrong


def test_a_float_graph_has_nothing_wrong(proto, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: None)
    record = build_tensorrt(proto, tmp_path, target=RTX, precision="fp32", options=BuildOptions())
    found = inspect_build(proto, tmp_path / "model.engine", artefact=record)
    assert found.wrong == ()
    assert sum(found.summary.values()) > 20
    assert all(name.endswith(" fp32") for name in found.summary)


CONVERT = """
import sys
import numpy, onnx, onnx.inliner
from modelopt.onnx.autocast import convert_to_mixed_precision
from modelopt.onnx.quantization import quantize
bundle, folder = sys.argv[1:]
clips = numpy.load(f"{bundle}/reference.npz")["clips"]
numpy.savez(f"{folder}/clips.npz", clip=clips)
quantize(f"{bundle}/model.onnx", quantize_mode="int8", calibration_data={"clip": clips}, high_precision_dtype="fp32",
         calibration_method="max", output_path=f"{folder}/int8.onnx", calibration_eps=["cpu"])
model = onnx.load(f"{bundle}/model.onnx")
for function in model.functions:
    for place, node in enumerate(function.node):
        node.name = f"PA__{place}"
onnx.save(onnx.inliner.inline_local_functions(model), f"{folder}/flat.onnx")
onnx.save(convert_to_mixed_precision(f"{folder}/flat.onnx", low_precision_type="fp16", nodes_to_exclude=["PA__.*"],
          calibration_data=f"{folder}/clips.npz", keep_io_types=True), f"{folder}/fp16.onnx")
"""


@pytest.fixture(scope="module")
def converted(exported, tmp_path_factory) -> Path:
    """The tiny model in int8 and fp16, by ModelOpt alone; in a process of its own, because ModelOpt patches ONNX Runtime."""
    pytest.importorskip("modelopt")
    folder = tmp_path_factory.mktemp("converted")
    done = subprocess.run([sys.executable, "-c", CONVERT, exported, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def exact_nodes(proto: onnx.ModelProto) -> list[str]:
    """PA and what follows the pooling: the classifier and its like."""
    return [node.name for node in proto.graph.node if node.domain == "flowless" or node.op_type in {"Gemm", "MatMul"}]


@pytest.mark.slow
def test_an_int8_graph_of_modelopt(converted):
    proto = onnx.load(converted / "int8.onnx")
    layers = inspect_graph(proto, target=RTX)
    convolutions = sum(node.op_type == "Conv" for node in proto.graph.node)
    assert inspection(layers).summary["convolution int8"] == convolutions
    assert inspection(layers).summary["residual add int8"] == 4
    assert wrong_layers(layers, "int8", kept=exact_nodes(proto)) == ()
    pa = next(node.name for node in proto.graph.node if node.domain == "flowless")
    assert any(line.startswith(f"convolution {pa}/") for line in wrong_layers(layers, "int8"))
    # the seeded fault: one convolution reads its input past the quantisation
    node = [node for node in proto.graph.node if node.op_type == "Conv"][3]
    makers = {output: item for item in proto.graph.node for output in item.output}
    node.input[0] = makers[makers[node.input[0]].input[0]].input[0]
    wrong = wrong_layers(inspect_graph(proto, target=RTX), "int8", kept=exact_nodes(proto))
    assert wrong == (f"convolution {node.name} runs in fp32 (of its two inputs only the weights are quantised), not int8",)


@pytest.mark.slow
def test_an_fp16_graph_of_autocast(converted, proto):
    layers = inspect_graph(onnx.load(converted / "fp16.onnx"), target=RTX)
    convolutions = sum(node.op_type == "Conv" for node in proto.graph.node)
    assert inspection(layers).summary["convolution fp16"] == convolutions
    wrong = wrong_layers(layers, "fp16")
    assert wrong
    assert all("PA__" in line and line.endswith("runs in fp32, not fp16") for line in wrong)
    assert len(wrong_layers(inspect_graph(proto, target=RTX), "fp16")) > convolutions


def reported(name: str, kind: str, datatype: str, *nodes: str) -> dict:
    """One layer as an engine's inspector reports it."""
    origins = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)
    return {"Name": name, "LayerType": kind, "Inputs": [{"Name": "a", "Format/Datatype": datatype}], "Metadata": origins}


def test_what_an_inspector_reports_of_an_engine():
    text = json.dumps(
        {
            "Layers": [
                reported("conv1 + relu1", "CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format", "conv1", "relu1"),
                reported("conv2", "CaskConvolution", "Row major linear FP32", "conv2"),
                reported("pa", "CaskConvolution", "Half", "PA_features | pa (PersistenceOfAppearance)"),
                reported("fc", "CaskGemmMatrixMultiply", "Float", "fc"),
                reported("myelin", "Myelin", "N/A due to dynamic shapes", "conv3"),
                "a name alone",
            ]
        }
    )
    found = read_engine_information(text)
    assert found == [
        Layer("conv1 + relu1", "convolution", "int8"),
        Layer("conv2", "convolution", "fp32"),
        Layer("pa/PA_features", "convolution", "fp16"),
        Layer("fc", "matrix product", "fp32"),
        Layer("conv3", "myelin", "unknown"),
        Layer("a name alone", "unknown", "unknown"),
    ]
    wanted = [Layer(name, "convolution", "int8") for name in ("conv1", "conv2", "conv3")] + [Layer("fc", "matrix product", "fp32")]
    assert differing_layers(wanted, found) == ("convolution conv2 runs in fp32, and in the graph in int8",)
    assert wrong_layers(found, "int8", kept=["pa", "fc"]) == ("convolution conv2 runs in fp32, not int8",)
    assert inspection(found).summary == {"convolution fp16": 1, "convolution fp32": 1, "convolution int8": 1, "matrix product fp32": 1}

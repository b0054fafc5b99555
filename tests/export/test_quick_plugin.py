"""The Python plugin of TensorRT: what the kernel is launched with, its graph, and, where TensorRT is, the plugin itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowless.errors import FlowlessError
from flowless.export.pa_function import DOMAIN, OP, OPSET, pa_function, pa_nodes
from flowless.export.plugin_library import find_library
from flowless.export.quick_plugin import for_quick_plugin, launch_sizes, motion_sizes, register_quick_plugin


def graph_of(shape, weight, *, eps, kind=TensorProto.FLOAT):
    """One PA node with its body; B free."""
    node = helper.make_node(
        OP, ["clip", "weight"], ["motion"], domain=DOMAIN, eps=eps, eps_inside=0, plugin_version="1", plugin_namespace=DOMAIN
    )
    graph = helper.make_graph(
        [node],
        "pa",
        [helper.make_tensor_value_info("clip", kind, ["B", *shape[1:]])],
        [helper.make_tensor_value_info("motion", kind, ["B", *motion_sizes(shape)[1:]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=[pa_function()], opset_imports=opsets, ir_version=10)


def ceil_div(value, by):
    return -(-value // by)


@pytest.mark.parametrize("shape", [(2, 8, 4, 3, 224, 224), (1, 3, 2, 3, 17, 33), (5, 3, 1, 1), (3, 2, 3, 16, 32)])
def test_launch_is_the_one_of_pytorch(shape, monkeypatch):
    """The same programs and integers as where PyTorch launches the kernel."""
    pytest.importorskip("triton")
    import torch

    from flowless.train.pa import triton_forward as kernels

    seen = []
    monkeypatch.setattr(kernels, "launch", lambda kernel, programs, arguments, constants: seen.append((kernel, programs, arguments)))
    kernels.forward(torch.zeros(shape), torch.zeros(8, 3, 7, 7), 1e-12)
    ((kernel, programs, arguments),) = seen
    tile = (2 * kernels.FORWARD_BLOCK["ROWS"], 2 * kernels.FORWARD_BLOCK["COLUMNS"])
    found, integers = launch_sizes(shape, tile, ceil_div)
    assert found == programs
    passed = dict(zip(kernel.arg_names, arguments, strict=False))
    if len(shape) == 4:  # PyTorch's stride of an axis of one stack is what it likes
        del passed["stride_stack"], integers["stride_stack"]
    assert integers == {name: value for name, value in passed.items() if isinstance(value, int)}


def test_kernel_takes_what_tensorrt_passes():
    """Inputs, integers, outputs, and nothing behind them: TensorRT passes no scratch memory."""
    pytest.importorskip("triton")
    code = """
import json
from flowless.train.pa.ptx import compile_ahead
made = compile_ahead(80, "float16", eps=1e-6, eps_inside=True)
print(json.dumps([made.parameters, made.entry, made.ptx, list(made.tile)]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    parameters, entry, ptx, tile = json.loads(done.stdout)
    kinds = [kind for _, kind in parameters]
    assert kinds == ["*fp16", "*fp16", *["i32"] * (len(kinds) - 3), "*fp16"]
    names = [name for name, kind in parameters if kind == "i32"]
    assert set(names) == set(launch_sizes((1, 4, 3, 9, 9), tuple(tile), ceil_div)[1])
    assert ptx.split(f".entry {entry}(")[1].split(")")[0].count(".param") == len(parameters)


def test_graph_asks_for_the_plugin_ahead_of_time():
    proto = graph_of((1, 2, 3, 3, 9, 9), np.zeros((8, 3, 7, 7), np.float32), eps=1e-6)
    bare = for_quick_plugin(proto)
    assert not bare.functions
    (node,) = pa_nodes(bare)
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    assert (node.op_type, attributes["plugin_namespace"], attributes["plugin_version"], attributes["aot"]) == (OP, b"flowless", b"1", 1)
    assert not any(item.name == "aot" for item in pa_nodes(proto)[0].attribute)


def test_without_tensorrt_or_with_an_old_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(FlowlessError, match=r"tensorrt is not installed; the Python plugin is for TensorRT 10\.9 or newer"):
        register_quick_plugin()
    old, plugin = ModuleType("tensorrt"), ModuleType("tensorrt.plugin")
    vars(old)["__version__"] = "10.8.0.43"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
    with pytest.raises(FlowlessError, match=r"This is TensorRT 10\.8\.0\.43; 10\.9 and newer"):
        register_quick_plugin()


def test_tensorrt_takes_the_plugin():
    pytest.importorskip("tensorrt")
    code = """
import tensorrt as trt
from flowless.errors import FlowlessError
from flowless.export.plugin_library import load_plugin, registered_kind
from flowless.export.quick_plugin import register_quick_plugin
register_quick_plugin(arch=80)
register_quick_plugin(arch=80)
print("KIND", registered_kind(trt.get_plugin_registry()))
try:
    load_plugin(trt, "library.so")
except FlowlessError as error:
    print("REFUSED", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "KIND PLUGIN CREATOR_V3QUICK" in done.stdout
    assert "REFUSED flowless::PersistenceOfAppearance is registered in this process as a Python plugin already" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True], ids=["FP32", "FP16"])
@pytest.mark.parametrize("way", ["library", "python"])
def test_engine_with_the_plugin(way, half, reference, tmp_path):
    """An engine of one PA node against the formula; the Python plugin's runs in a process that has never heard of it."""
    pytest.importorskip("tensorrt")
    if way == "library" and find_library() is None:
        pytest.skip("no plugin library here: name it in FLOWLESS_PA_PLUGIN")
    rng = np.random.default_rng(4)
    kind = np.float16 if half else np.float32
    clip, weight = rng.uniform(0, 1, (2, 3, 4, 3, 33, 47)).astype(kind), rng.normal(0, 0.05, (8, 3, 7, 7)).astype(kind)
    onnx.save(graph_of(clip.shape, weight, eps=1e-6, kind=TensorProto.FLOAT16 if half else TensorProto.FLOAT), tmp_path / "pa.onnx")
    np.save(tmp_path / "clip.npy", clip)
    for code in (BUILD, RUN):
        subprocess.run([sys.executable, "-c", code, way], cwd=tmp_path, check=True, timeout=300)
    expected = reference.persistence(clip.astype(np.float64), weight.astype(np.float64), None, 1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "motion.npy"), expected, rtol=2e-3 if half else 1e-5, atol=1e-6)


BUILD = """
import sys
import onnx
import tensorrt as trt
from flowless.export.plugin_library import find_library, load_plugin, without_function
from flowless.export.quick_plugin import for_quick_plugin, register_quick_plugin

logger = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(logger)
proto = onnx.load("pa.onnx")
if sys.argv[1] == "library":
    load_plugin(trt, find_library())
    proto = without_function(proto)
else:
    register_quick_plugin()
    proto = for_quick_plugin(proto)
flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
network = builder.create_network(0 if flag is None else 1 << int(flag))
parser = trt.OnnxParser(network, logger)
assert parser.parse(proto.SerializeToString()), [parser.get_error(index).desc() for index in range(parser.num_errors)]
config = builder.create_builder_config()
profile = builder.create_optimization_profile()
rest = tuple(network.get_input(0).shape)[1:]
profile.set_shape("clip", (1, *rest), (2, *rest), (4, *rest))
config.add_optimization_profile(profile)
with open("pa.engine", "wb") as stream:
    stream.write(builder.build_serialized_network(network, config))
"""

RUN = """
import sys
import numpy as np
import tensorrt as trt
import torch

runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
if sys.argv[1] == "library":
    from flowless.export.plugin_library import find_library, load_plugin
    load_plugin(trt, find_library())
with open("pa.engine", "rb") as stream:
    engine = runtime.deserialize_cuda_engine(stream.read())
context = engine.create_execution_context()
clip = torch.from_numpy(np.load("clip.npy")).cuda()
assert context.set_input_shape("clip", tuple(clip.shape))
motion = torch.full(tuple(context.get_tensor_shape("motion")), torch.nan, dtype=clip.dtype, device="cuda")
context.set_tensor_address("clip", clip.data_ptr())
context.set_tensor_address("motion", motion.data_ptr())
stream = torch.cuda.Stream()
stream.wait_stream(torch.cuda.current_stream())
assert context.execute_async_v3(stream.cuda_stream)
stream.synchronize()
np.save("motion.npy", motion.cpu().numpy())
"""

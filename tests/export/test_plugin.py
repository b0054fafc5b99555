"""The TensorRT plugin's library: compiled, called as TensorRT calls it, found by TensorRT-RTX's registry and parser; and its graph."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowless.errors import FlowlessError
from flowless.export.graph.export_graph import read_graph
from flowless.export.graph.pa_function import DOMAIN, OP, OPSET, pa_function, pa_nodes
from flowless.export.plugin import plugin_library
from flowless.export.plugin.plugin_library import build_library, find_library, main, without_function

HARNESS = Path(__file__).with_name("plugin_harness")


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    """Compile the plugin for all its GPUs, as a release does; no GPU and no TensorRT are needed, but its headers are."""
    if not os.environ.get("TENSORRT_ROOT"):
        pytest.skip("TENSORRT_ROOT is not set: no TensorRT headers here, so the plugin is not compiled")
    for tool in ("cmake", "nvcc"):
        if shutil.which(tool) is None and not (tool == "nvcc" and os.environ.get("CUDACXX")):
            pytest.skip(f"{tool} is not here, so the plugin is not compiled")
    return build_library(out=tmp_path_factory.mktemp("plugin") / "libflowless_pa_plugin.so")


@pytest.fixture(scope="session")
def returned(library, tmp_path_factory) -> dict[str, str]:
    """What the plugin returns to a C++ program that calls it as TensorRT would."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    root = Path(os.environ["TENSORRT_ROOT"])
    headers = [root / "include", root, *cuda_headers()]
    program = tmp_path_factory.mktemp("calls") / "calls"
    command = [compiler, "-std=c++17", "-Wno-deprecated-declarations", *(word for path in headers for word in ("-isystem", str(path)))]
    subprocess.run([*command, str(HARNESS / "plugin_calls.cpp"), "-ldl", "-o", str(program)], check=True)
    done = subprocess.run([str(program), str(library)], capture_output=True, text=True, check=True)
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def major(library: Path) -> int:
    return ctypes.CDLL(str(library)).flowless_pa_tensorrt_major()


def cuda_headers() -> list[Path]:
    nvcc = Path(shutil.which(os.environ.get("CUDACXX") or "nvcc") or "/usr/local/cuda/bin/nvcc")
    folders = [nvcc.resolve().parents[1] / "include", Path("/usr/local/cuda/include")]
    return [folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()]


def in_process(code: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run code apart: what a registry has loaded stays in its process, and TensorRT-RTX ends it at a plugin's layer."""
    return subprocess.run([sys.executable, "-c", LISTEN + code, *map(str, args)], capture_output=True, text=True, check=False, timeout=120)


LISTEN = """
import sys
import json
import numpy as np
import tensorrt_rtx as trt
from flowless.engines.backends.tensorrt_process import tensorrt_process
from flowless.errors import FlowlessError
from flowless.export.plugin.plugin_library import load_plugin

class Listener(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)

    def log(self, severity, text):
        if "PersistenceOfAppearance" in text:
            print(severity.name, text, flush=True)

listener = Listener()
builder = trt.Builder(listener)
process = tensorrt_process("tensorrt-rtx")
"""


def small_graph(kind=TensorProto.FLOAT, *, weight=None, eps=1e-6):
    """A PA node with its body; `weight` may be of another type than the clip."""
    weight = np.zeros((8, 3, 7, 7), helper.tensor_dtype_to_np_dtype(kind)) if weight is None else weight
    attributes = {"eps": eps, "eps_inside": 1, "plugin_version": "1", "plugin_namespace": DOMAIN}
    nodes = [
        helper.make_node("Cast", ["frames"], ["clip"], to=kind),
        helper.make_node(OP, ["clip", "weight"], ["motion"], domain=DOMAIN, **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "pa",
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["B", 2, 4, 3, 9, 10])],
        [helper.make_tensor_value_info("motion", kind, ["B", 2, 3, 9, 10])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=[pa_function(eps_inside=True)], opset_imports=opsets, ir_version=10)


@pytest.mark.slow
def test_library_exports_what_a_registry_calls(library):
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm here")
    listed = subprocess.run([nm, "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1] for line in listed.splitlines()} == {
        *("flowless_pa_launch", "flowless_pa_tensorrt_major", "getCreators", "setLoggerFinder")
    }
    needed = subprocess.run([nm, "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True).stdout
    assert not [line for line in needed.splitlines() if "nvinfer" in line.lower() or " cuda" in line]


@pytest.mark.slow
def test_plugin_is_made_and_serialised(returned):
    assert returned["creators"] == "1"
    assert returned["creator"] == "flowless::PersistenceOfAppearance 1"
    for name in ("made", "made again", "cloned", "attached"):
        eps, inside = returned[name].split()
        assert np.float32(eps.removeprefix("eps=")) == np.float32(1e-12), name
        assert inside == "eps_inside=1", name
    assert returned["without eps_inside"].endswith("eps_inside=0")
    assert returned["wide fields"] == "eps=0.25 eps_inside=1"
    assert returned["errors while right"] == ""


@pytest.mark.slow
def test_plugin_refuses_other_fields(returned):
    refused = {"without eps": "not given", "negative eps": "0 or more", "eps as text": "has type 6", "eps_inside of 2": "0 or 1"}
    for case, reason in refused.items():
        assert returned[case] == "none"
        error = returned["error " + case if case.startswith("without") else f"error of {'a ' * case.startswith('negative')}{case}"]
        assert error.startswith("flowless::PersistenceOfAppearance: ")
        assert reason in error


@pytest.mark.slow
def test_plugin_shapes_may_be_dynamic(returned):
    assert returned["known shape"] == "2 8 (4 - 1) 15 16"
    assert returned["dynamic shape"] == "B 8 (m - 1) H W"
    assert returned["shape of one stack"] == "(m - 1) H W"
    assert (returned["configured"], returned["changed"], returned["errors of right shapes"]) == ("0", "0", "")
    assert returned["shape of an image"] == "none"
    for case in ("one frame", "too wide at most", "four colours", "other filters"):
        assert returned[case] == "1"
    assert "1 frames" in returned["error of one frame"]
    assert "9 x 2147483648" in returned["error of too wide"]
    assert "4 colours" in returned["error of four colours"]
    assert "[8, 3, 7, 7]" in returned["error of other filters"]


@pytest.mark.slow
def test_plugin_takes_fp32_or_fp16_and_no_mixture(returned):
    assert returned["linear"] == "000 111"
    assert returned["channels last"] == ""
    assert (returned["FP32 to"], returned["FP16 to"], returned["errors of right types"]) == ("0", "1", "")
    assert returned["mixed to"] == "none"
    assert "both must be FP32 (0) or both FP16 (1)" in returned["error of mixed types"]
    assert returned["workspace"] == "0"
    assert (returned["an empty batch"], returned["errors of an empty batch"]) == ("0", "")


@pytest.mark.slow
def test_rtx_registry_takes_the_library(library):
    pytest.importorskip("tensorrt_rtx")
    code = """
load_plugin(process, sys.argv[1])
load_plugin(process, sys.argv[1])
creator = trt.get_plugin_registry().get_creator("PersistenceOfAppearance", "1", "flowless")
values = np.array([[0.5], [-0.5]], np.float32)  # a field points to its values and does not keep them
fields = [trt.PluginFieldCollection([trt.PluginField("eps", value, trt.PluginFieldType.FLOAT32)]) for value in values]
made = [creator.create_plugin("pa", one, trt.TensorRTPhase.BUILD) for one in fields]
names = [field.name for field in creator.field_names]
listed = [(item.name, item.plugin_version, item.plugin_namespace) for item in trt.get_plugin_registry().all_creators]
print("RESULT", json.dumps([creator.interface_info.kind, names, [plugin is None for plugin in made], listed]))
"""
    done = in_process(code, library)
    assert done.returncode == 0, done.stderr
    kind, names, refused, listed = json.loads(done.stdout.split("RESULT ")[1])
    assert (kind, names, refused) == ("PLUGIN CREATOR_V3ONE", ["eps", "eps_inside"], [False, True])
    assert [OP, "1", DOMAIN] in listed
    if major(library) >= 11:  # TensorRT-RTX's loggers are those of TensorRT 11
        assert "VERBOSE flowless::PersistenceOfAppearance: made with eps 0.5, eps_inside 0." in done.stdout
        assert "ERROR flowless::PersistenceOfAppearance: eps is -0.5" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("stripped", "loaded"), [(True, True), (False, True), (False, False)])
def test_rtx_parser_finds_the_plugin(library, exported, tmp_path, stripped, loaded):
    """TensorRT-RTX makes our plugin, and then ends the process, for it has no plugin layers. The body alone does not stop it."""
    pytest.importorskip("tensorrt_rtx")
    proto = read_graph(exported / "model.onnx")
    path = tmp_path / "graph.onnx"
    onnx.save(without_function(proto) if stripped else proto, path)
    code = """
if sys.argv[2] == "True":
    load_plugin(process, sys.argv[1])
network = builder.create_network(0)
parser = trt.OnnxParser(network, listener)
print("PARSED", parser.parse(open(sys.argv[3], "rb").read()), flush=True)
"""
    done = in_process(code, library, str(loaded), path)
    made = "Successfully created plugin: PersistenceOfAppearance" in done.stdout
    assert made is loaded, done.stdout + done.stderr
    if not loaded:
        assert "PARSED True" in done.stdout
    elif major(library) >= 11:
        assert "flowless::PersistenceOfAppearance: made with eps 1e-12, eps_inside 0." in done.stdout


def test_rtx_parser_needs_the_plugin_for_a_stripped_graph():
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert not parser.parse(without_function(small_graph()).SerializeToString())
    assert "Plugin not found" in parser.get_error(0).desc()


def test_without_function_takes_the_body_alone(exported):
    proto = read_graph(exported / "model.onnx")
    before = proto.SerializeToString(deterministic=True)
    bare = without_function(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert not bare.functions
    assert [item.domain for item in bare.opset_import if item.domain == DOMAIN] == [DOMAIN]
    bare.functions.extend(proto.functions)
    assert bare.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_weight_gets_the_clips_type(kind, stored):
    weight = np.random.default_rng(2).normal(size=(8, 3, 7, 7)).astype(stored)
    bare = without_function(small_graph(kind, weight=weight))
    used = {item.name: item for item in bare.graph.initializer}[pa_nodes(bare)[0].input[1]]
    assert used.data_type == kind
    np.testing.assert_array_equal(numpy_helper.to_array(used), weight.astype(helper.tensor_dtype_to_np_dtype(kind)))


def test_graphs_the_plugin_is_not_for():
    with pytest.raises(FlowlessError, match=r"BFLOAT16 in this graph; the plugin takes FLOAT and FLOAT16"):
        without_function(small_graph(TensorProto.BFLOAT16))
    with pytest.raises(FlowlessError, match=r"\[8, 3, 5, 5\]; the plugin is written for \[8, 3, 7, 7\]"):
        without_function(small_graph(weight=np.zeros((8, 3, 5, 5), np.float32)))
    empty = small_graph()
    del empty.graph.node[1]
    with pytest.raises(FlowlessError, match="no PA node"):
        without_function(empty)


def test_find_library(monkeypatch, tmp_path):
    here = tmp_path / "lib.so"
    monkeypatch.delenv("FLOWLESS_PA_PLUGIN", raising=False)
    monkeypatch.setattr(plugin_library, "DEFAULT_LIBRARY", here)
    assert find_library() is None
    here.write_bytes(b"")
    assert find_library() == here
    other = tmp_path / "other.so"
    monkeypatch.setenv("FLOWLESS_PA_PLUGIN", str(other))
    with pytest.raises(FlowlessError, match=r"other\.so', which is not a file.*plugin_library"):
        find_library()
    other.write_bytes(b"")
    assert find_library() == other


def test_load_plugin_reports_what_is_wrong(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    rubbish = tmp_path / "rubbish.so"
    rubbish.write_bytes(b"not a library")
    code = """
for path in sys.argv[1:]:
    try:
        load_plugin(process, path)
    except FlowlessError as error:
        print("REFUSED", error)
"""
    done = in_process(code, tmp_path / "none.so", rubbish)
    assert done.returncode == 0, done.stderr
    first, second = (line for line in done.stdout.splitlines() if line.startswith("REFUSED"))
    assert "none.so: no such plugin library. Build it with" in first
    assert "rubbish.so: not flowless's plugin library, or not for this system" in second


@pytest.mark.slow
def test_load_plugin_refuses_another_tensorrts_library(library):
    pytest.importorskip("tensorrt_rtx")
    code = """
from types import SimpleNamespace
other = SimpleNamespace(target="tensorrt", trt=SimpleNamespace(__version__="9.3.0"), plugin_kind=process.plugin_kind)
try:
    load_plugin(other, sys.argv[1])
except FlowlessError as error:
    print("REFUSED", error)
"""
    done = in_process(code, library)
    assert f"compiled with the headers of TensorRT {major(library)}, and this is TensorRT 9.3.0" in done.stdout, done.stderr


def test_load_plugin_refuses_beside_the_python_plugin():
    pytest.importorskip("tensorrt_rtx")
    code = """
class Quick(trt.IPluginCreatorV3Quick):
    def __init__(self):
        trt.IPluginCreatorV3Quick.__init__(self)
        self.name, self.plugin_namespace, self.plugin_version = "PersistenceOfAppearance", "flowless", "1"
        self.field_names = trt.PluginFieldCollection([])

trt.get_plugin_registry().register_creator(Quick(), "flowless")
try:
    load_plugin(process, "library.so")
except FlowlessError as error:
    print("REFUSED", error)
"""
    done = in_process(code)
    assert "registered in this process as a Python plugin already" in done.stdout, done.stdout + done.stderr


def test_building_says_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    out = tmp_path / "lib.so"
    monkeypatch.setattr(plugin_library.shutil, "which", lambda name: None if name == "cmake" else name)
    with pytest.raises(FlowlessError, match="cmake is not here"):
        build_library(tensorrt_root=tmp_path, out=out)
    monkeypatch.setattr(plugin_library.shutil, "which", lambda name: None if "nvcc" in name else name)
    with pytest.raises(FlowlessError, match=r"nvcc is not here.*CUDACXX"):
        build_library(tensorrt_root=tmp_path, out=out)
    monkeypatch.setenv("CUDACXX", "no-nvcc")
    with pytest.raises(FlowlessError, match=r"CUDACXX is 'no-nvcc'"):
        build_library(tensorrt_root=tmp_path, out=out)
    monkeypatch.setattr(plugin_library.shutil, "which", lambda name: name)
    with pytest.raises(FlowlessError, match=r"no NvInfer\.h in .*include or .*--tensorrt-root"):
        main(["--tensorrt-root", str(tmp_path), "--out", str(out)])
    assert not out.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_building_fails_whole(library, tmp_path):
    with pytest.raises(FlowlessError, match=r"could not be configured; cmake says: (.|\n)*compute_1"):
        build_library(out=tmp_path / "lib.so", architectures="1")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_builds(library, tmp_path, capsys):
    out = tmp_path / "lib.so"
    assert main(["--out", str(out), "--architectures", "80", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"library": str(out), "bytes": out.stat().st_size}
    assert out.stat().st_size < library.stat().st_size

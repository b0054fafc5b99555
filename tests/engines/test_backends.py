"""Which engines fit this machine, decided before anything is loaded, and libraries that refuse an engine."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest

from flowless import cuda_driver
from flowless.engines.backends import backend, tensorrt_backend
from flowless.engines.backends.openvino_core import openvino_reason
from flowless.engines.backends.tensorrt_process import tensorrt_process
from flowless.engines.bundle import compatibility
from flowless.engines.bundle.compatibility import Here, mismatch
from flowless.engines.bundle.manifest import Artefact, read_manifest
from flowless.errors import FlowlessError
from flowless.interrupts import note_ctrl_c

A10 = Here(version="10.13.3.9", capability=86, gpu="NVIDIA A10", platform="linux-x86_64")
#: What TensorRT-RTX 1.7.1 names; `test_the_library_names_the_gpus_that_it_runs_on` reads it off the library.
RTX_KNOWS = (75, 80, 86, 89, 120, 121)
RTX_4090 = Here(version="1.7.1.116", capability=89, gpu="NVIDIA GeForce RTX 4090", platform="linux-x86_64", known=RTX_KNOWS)
ON_A10 = {"platform": "linux-x86_64", "gpu": "NVIDIA A10", "gpu_compute_capability": 86, "compute_capabilities": [], "portable": False}
PORTABLE = {**ON_A10, "portable": True}
ANY_RTX = {"platform": "linux-x86_64", "compute_capabilities": [], "portable": False}


def engine(target: str, version: str | None, options: dict) -> Artefact:
    versions = {} if version is None else {target.replace("-", "_"): version}
    return Artefact(
        target=target,  # pyright: ignore[reportArgumentType]
        precision="fp16",
        status="built, not run here",
        files=("x/model.engine",),
        versions=versions,
        options=options,
    )


@pytest.mark.parametrize(
    ("artefact", "here"),
    [
        (engine("tensorrt", "10.13.3.9", ON_A10), A10),
        # facts that the driver does not report or an older manifest does not record are not compared
        (engine("tensorrt", "10.13.3.9", ON_A10), dataclasses.replace(A10, gpu=None)),
        (engine("tensorrt", None, {}), A10),
        # portable: later versions of the same major version, TensorRT 11 for those of 10, and any GPU since Ampere
        (engine("tensorrt", "10.9.0.34", PORTABLE), A10),
        (engine("tensorrt", "10.13.3.9", PORTABLE), dataclasses.replace(A10, version="11.0.0.1")),
        (engine("tensorrt", "10.13.3.9", PORTABLE), dataclasses.replace(A10, capability=90, gpu="NVIDIA H100")),
        # TensorRT-RTX: every GPU since Ampere, or those named; Linux and Windows alike
        (engine("tensorrt-rtx", "1.7.1.116", ANY_RTX), RTX_4090),
        (engine("tensorrt-rtx", "1.7.1.116", ANY_RTX), dataclasses.replace(RTX_4090, capability=80)),
        (engine("tensorrt-rtx", "1.7.1.116", ANY_RTX), dataclasses.replace(RTX_4090, capability=120)),
        (engine("tensorrt-rtx", "1.7.1.116", ANY_RTX), dataclasses.replace(RTX_4090, capability=121)),
        (engine("tensorrt-rtx", "1.7.1.116", {**ANY_RTX, "compute_capabilities": [75]}), dataclasses.replace(RTX_4090, capability=75)),
        (engine("tensorrt-rtx", "1.7.1.116", ANY_RTX), dataclasses.replace(RTX_4090, platform="windows-amd64")),
        (engine("tensorrt-rtx", "1.7.1.116", {**ANY_RTX, "compute_capabilities": [86, 89]}), RTX_4090),
    ],
)
def test_engines_that_fit(artefact, here):
    assert mismatch(artefact, here) is None


@pytest.mark.parametrize(
    ("artefact", "here", "says"),
    [
        (
            engine("tensorrt", "10.13.3.9", ON_A10),
            dataclasses.replace(A10, capability=90, gpu="NVIDIA H100"),
            ["built for compute capability 86 (NVIDIA A10)", "the GPU here has 90 (NVIDIA H100)"],
        ),
        (
            engine("tensorrt", "10.13.3.9", ON_A10),
            dataclasses.replace(A10, gpu="NVIDIA GeForce RTX 3090"),
            ["built for NVIDIA A10", "the GPU here is NVIDIA GeForce RTX 3090"],
        ),
        (
            engine("tensorrt", "10.13.3.8", ON_A10),
            A10,
            ["built by tensorrt 10.13.3.8 for that version alone", "10.13.3.9 is here"],
        ),
        (
            engine("tensorrt", "10.14.0.1", PORTABLE),
            A10,
            ["built by tensorrt 10.14.0.1 for that version and later ones of 10.x", "10.13.3.9 is here"],
        ),
        (engine("tensorrt", "11.0.0.1", PORTABLE), A10, ["11.0.0.1", "10.13.3.9 is here"]),
        (
            engine("tensorrt", "10.13.3.9", PORTABLE),
            dataclasses.replace(A10, capability=75, gpu="Tesla T4"),
            ["compute capability 80 and later", "the GPU here has 75"],
        ),
        (
            engine("tensorrt", "10.13.3.9", PORTABLE),
            dataclasses.replace(A10, platform="linux-aarch64"),
            ["built for linux-x86_64", "this is linux-aarch64"],
        ),
        (engine("tensorrt-rtx", "1.7.0.9", ANY_RTX), RTX_4090, ["built by tensorrt_rtx 1.7.0.9", "1.7.1.116 is here"]),
        (
            engine("tensorrt-rtx", "1.7.1.116", {**ANY_RTX, "compute_capabilities": [86, 120]}),
            RTX_4090,
            ["built for compute capability 86, 120", "the GPU here has 89"],
        ),
        (
            engine("tensorrt-rtx", "1.7.1.116", ANY_RTX),
            dataclasses.replace(RTX_4090, capability=75),
            ["compute capability 80 and later", "--force --compute-capability 75"],
        ),
        # everything that is wrong stands in the one line
        (
            engine("tensorrt", "10.9.0.34", ON_A10),
            dataclasses.replace(A10, capability=90, platform="windows-amd64"),
            ["10.9.0.34", "has 90", "windows-amd64"],
        ),
    ],
)
def test_engines_that_do_not_fit(artefact, here, says):
    line = mismatch(artefact, here)
    assert line is not None
    assert "\n" not in line
    for part in [*says, f"; build it again with: flowless build BUNDLE --target {artefact.target} --precision fp16 --force"]:
        assert part in line


@pytest.mark.parametrize("named", [[], [86, 89]])
@pytest.mark.parametrize(
    ("capability", "gpu"),
    [
        (87, "Orin"),
        (90, "NVIDIA H100 80GB HBM3"),
        (100, "NVIDIA B200"),
        (103, "NVIDIA B300"),
        (110, "NVIDIA Thor"),
        (70, "Tesla V100"),
    ],
)
def test_gpus_that_tensorrt_rtx_does_not_name(capability, gpu, named):
    """It says so itself, and no engine of it can be built for them; a portable one of TensorRT runs on all since Ampere."""
    here = dataclasses.replace(RTX_4090, capability=capability, gpu=gpu)
    line = mismatch(engine("tensorrt-rtx", "1.7.1.116", {**ANY_RTX, "compute_capabilities": named}), here)
    assert line == (
        "tensorrt_rtx 1.7.1.116 runs on compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1 alone, and "
        f"{gpu} has compute capability {capability // 10}.{capability % 10}; build another target"
    )
    portable = engine("tensorrt", "10.13.3.9", PORTABLE)
    runs = mismatch(portable, dataclasses.replace(A10, capability=capability, gpu=gpu)) is None
    assert runs == (capability >= 80)


def test_the_library_names_the_gpus_that_it_runs_on(monkeypatch):
    trt = pytest.importorskip("tensorrt_rtx")
    assert compatibility.known_capabilities(trt) == RTX_KNOWS
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (9, 0))
    assert "8.9, 12.0, 12.1 alone, and the GPU here has compute capability 9.0" in (backend.why_not("tensorrt-rtx") or "")
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (12, 0))
    assert backend.why_not("tensorrt-rtx") is None


def test_why_not_knows_what_is_here(built, monkeypatch):
    """The version that is installed and the GPU that the driver names are what a manifest is compared with."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (8, 9))
    monkeypatch.setattr(cuda_driver, "gpu_name", lambda: "NVIDIA GeForce RTX 4090")
    artefact = read_manifest(built).artefact("tensorrt-rtx", "fp32")
    assert artefact is not None
    assert backend.why_not("tensorrt-rtx", artefact) is None
    older = dataclasses.replace(artefact, versions={"tensorrt_rtx": "1.6.0.1"})
    assert "built by tensorrt_rtx 1.6.0.1" in (backend.why_not("tensorrt-rtx", older) or "")
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (7, 5))
    assert "the GPU here has 75" in (backend.why_not("tensorrt-rtx", artefact) or "")


def test_without_a_gpu_nothing_is_imported(built, monkeypatch):
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: None)
    monkeypatch.setattr(compatibility, "what_is_here", lambda *_: pytest.fail("imported the library"))
    artefact = read_manifest(built).artefact("tensorrt-rtx", "fp32")
    assert backend.why_not("tensorrt-rtx", artefact) == "there is no NVIDIA GPU here"
    with pytest.raises(FlowlessError, match="No NVIDIA GPU can be used here"):
        backend.open_backend(artefact, built / "tensorrt-rtx-fp32" / "model.engine", classes=6)  # pyright: ignore[reportArgumentType]


def test_an_engine_that_cannot_be_read(tmp_path, capfd):
    """One line, and TensorRT prints nothing."""
    pytest.importorskip("tensorrt_rtx")
    process = tensorrt_process("tensorrt-rtx")
    path = tmp_path / "model.engine"
    path.write_bytes(b"no engine at all" * 100)
    with pytest.raises(FlowlessError) as caught:
        tensorrt_backend.open_engine(process, process.trt.Runtime(process.logger), path, artefact=engine("tensorrt-rtx", None, ANY_RTX))
    assert "cannot read this engine here (malformed engine" in str(caught.value)
    assert "flowless build BUNDLE --target tensorrt-rtx --precision fp16 --force" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [None, "gone.onnx", "../../outside.onnx"])
def test_weights_that_are_not_in_the_bundle(name, tmp_path):
    (tmp_path / "outside.onnx").write_bytes(b"")
    path = tmp_path / "bundle" / "tensorrt-rtx-fp16" / "model.engine"
    path.parent.mkdir(parents=True)
    stripped = engine("tensorrt-rtx", "1.7.1.116", {**ANY_RTX, "stripped": True, "refit_from": name})
    with pytest.raises(FlowlessError, match="no weights of its own"):
        tensorrt_backend.weights_file(path, stripped)
    (path.parent / "weights.onnx").write_bytes(b"")
    named = dataclasses.replace(stripped, options={**stripped.options, "refit_from": "weights.onnx"})
    assert tensorrt_backend.weights_file(path, named) == path.parent / "weights.onnx"


@pytest.mark.parametrize("variable", [None, "gone.so"])
def test_a_plugin_that_is_not_loaded(variable, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    artefact = engine("tensorrt-rtx", "1.7.1.116", {**ANY_RTX, "pa": "plugin"})
    monkeypatch.delenv(tensorrt_backend.PLUGIN_VARIABLE, raising=False)
    if variable:
        monkeypatch.setenv(tensorrt_backend.PLUGIN_VARIABLE, variable)
    says = f"FLOWLESS_PA_PLUGIN is {variable!r}, which TensorRT does not load" if variable else "FLOWLESS_PA_PLUGIN is not set"
    with pytest.raises(FlowlessError, match=says):
        tensorrt_backend.load_plugin_of(tensorrt_process("tensorrt-rtx"), artefact, tmp_path)


_TWO_LIVES = """
import signal, sys
import flowless
first = flowless.load(sys.argv[1], "openvino")
second = flowless.load(sys.argv[1], "openvino")
del first
del second
signal.signal(signal.SIGINT, lambda *_: print("heard"))
signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_after_two_engines_came_and_went(built):
    """OpenVINO's plugins exchange the stack that signals arrive on; a freed one would end the process."""
    done = subprocess.run([sys.executable, "-c", _TWO_LIVES, str(built)], check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


REFUSED = """Exception from src/inference/src/cpp/core.cpp:105:
Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted. Failed operations detailed log:
-- MaxPool-20 with a message:
While validating ONNX node '<Node(MaxPool): node_max_pool2d_3>': Check 'cmp::le(kernel, dim.get_length())' failed at src/core/shape.hpp:149:
While validating node 'opset8::MaxPool MaxPool_1323' with friendly_name 'MaxPool_1323':
Kernel after dilation has size (dim: 3) larger than the data shape after padding (dim: 2) at axis 0.

Summary:
-- Conversion is failed for: MaxPool-20
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (REFUSED, "MaxPool-20: Kernel after dilation has size (dim: 3) larger than the data shape after padding (dim: 2) at axis 0."),
        ("Exception from src/x.cpp:1:\nCannot open the file.\n", "Cannot open the file."),
        ("\n  Exception from src/x.cpp:1:\n", "Exception from src/x.cpp:1:"),
        ("", "RuntimeError"),
    ],
)
def test_openvinos_reason_is_shown_without_its_source_files(text, message):
    assert openvino_reason(RuntimeError(text)) == message


def test_int8_sums_do_not_overflow_on_any_processor(tmp_path):
    """Without VNNI two products of bytes are added in 16 bits: 255 x 127 twice is more. (ONNX Runtime has an option against it.)"""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from flowless.export.verify.inspect_cpu import inspect_onnxruntime

    constants = {
        "weights": np.full((4, 4, 3, 3), 127, np.int8),
        "scale": np.float32(0.01),
        "coarse": np.float32(10),
        "zero": np.int8(0),
        "unsigned": np.uint8(0),
        "shape": np.array([-1, 4], np.int64),
        "pixels": np.array([-1, 4, 8, 8], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["clip"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "pixels"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "unsigned"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "unsigned"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weights", "scale", "zero"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["y"], "only"),
        helper.make_node("QuantizeLinear", ["y", "coarse", "unsigned"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "coarse", "unsigned"], ["yd"]),
        helper.make_node("GlobalMaxPool", ["yd"], ["most"]),
        helper.make_node("Reshape", ["most", "shape"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("clip", TensorProto.UINT8, ["B", 4, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    artefact = Artefact(target="onnxruntime", precision="int8", status="verified", files=("model.onnx",))
    scores = backend.open_backend(artefact, path, classes=4)(np.full((1, 4, 8, 8), 255, np.uint8))
    np.testing.assert_allclose(scores, 2.55 * 1.27 * 4 * 9, atol=5.1)
    assert [layer.precision for layer in inspect_onnxruntime(path)] == ["int8"]


def test_openvino_is_imported_without_its_telemetry():
    code = (
        "import sys\n"
        "from flowless.engines.backends.openvino_core import openvino_core\n"
        "openvino_core()\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith('openvino_telemetry')) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_ctrl_c_while_an_engine_is_opened_is_no_fault_of_the_engine(built, monkeypatch):
    """OpenVINO calls what it was interrupted in a failure of its own."""

    def interrupted(*_, **__):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        raise RuntimeError("initialization failed")

    monkeypatch.setattr(backend, "OpenVino", interrupted)
    artefact = next(item for item in read_manifest(built).artefacts if item.target == "openvino")
    with note_ctrl_c(), pytest.raises(KeyboardInterrupt):
        backend.open_backend(artefact, built / artefact.files[0], classes=6)

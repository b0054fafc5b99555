"""Where there is a GPU and ONNX Runtime's CUDA provider does not start, the engine says so, and the host keeps its own log."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import flowless
from flowless import cuda_driver, doctor
from flowless.bench.lib.networks import random_clips
from flowless.engines.backends import onnxruntime_cuda

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def no_gpu_here() -> None:
    if cuda_driver.compute_capability() is not None:
        pytest.skip("there is a GPU here")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, no_gpu_here: None) -> Iterator[None]:
    """A GPU that the driver is said to list: ONNX Runtime then tries its real provider, which finds no driver here."""
    if onnxruntime_cuda.PROVIDER not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime {onnxruntime.__version__} has no CUDA provider")
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (8, 9))
    onnxruntime_cuda._start.cache_clear()
    yield
    onnxruntime_cuda._start.cache_clear()


def test_the_smallest_model_is_what_onnx_writes() -> None:
    onnx = pytest.importorskip("onnx")
    value = {name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"}
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value["x"]], [value["y"]])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert onnx.load_from_string(onnxruntime_cuda.SMALLEST) == model
    session, reason = onnxruntime_cuda.open_session(onnxruntime_cuda.SMALLEST, onnxruntime.SessionOptions())
    assert (reason is None) == (onnxruntime_cuda.PROVIDER in session.get_providers())
    np.testing.assert_array_equal(session.run(None, {"x": np.full(1, 3, np.float32)})[0], [3])


def test_without_a_gpu_nothing_is_said(built: Path, no_gpu_here: None) -> None:
    assert onnxruntime_cuda.why_not_cuda() == "there is no NVIDIA GPU here"
    assert "GPU" not in flowless.load(built, "onnxruntime", "fp32").why


def test_why_says_that_the_provider_does_not_start(built: Path, card: None, capfd: pytest.CaptureFixture[str]) -> None:
    engine = flowless.load(built, "onnxruntime", "fp32")
    assert engine.device == "CPU"
    version, cuda = onnxruntime.__version__, onnxruntime.cuda_version
    assert f"on the CPU, because the CUDA provider of onnxruntime {version}, for CUDA {cuda}, does not start (lib" in engine.why
    assert "cannot open shared object file" in engine.why
    assert "/" not in engine.why.partition("does not start")[2]
    assert np.isfinite(engine(random_clips(1, engine.spec, seed=1))).all()
    assert capfd.readouterr().out == ""


def test_doctor_says_it_too(card: None) -> None:
    (finding,) = (item for item in doctor.examine(["run"]) if item.what == "onnxruntime on CUDA")
    assert not finding.ok
    assert "cannot open shared object file" in finding.detail
    assert finding.remedy


def test_the_gpu_suite_says_it_too(card: None, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from flowless.bench.gpu import engines
    from flowless.bench.gpu.results import NotHere, Results, Settings

    with pytest.raises(NotHere, match="cannot open shared object file"):
        engines.onnxruntime(Results(path=tmp_path / "results.json", settings=Settings(folder=tmp_path)))


def test_a_build_without_the_provider(card: None, monkeypatch: pytest.MonkeyPatch, built: Path) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "has no CUDA provider (pip install 'flowless[onnxruntime]')" in flowless.load(built, "onnxruntime", "fp32").why


_A_DRIVER_TOO_OLD = """
int cuInit(unsigned flags) { return 100; }
int cuDriverGetVersion(int *version) { *version = 12000; return 0; }
int cuGetProcAddress_v2(const char *name, void **at, int version, unsigned long long flags, void *found) { *at = 0; return 500; }
int cuTensorMapEncodeTiled(void) { return 100; }
"""
_SCRIPT = """
import json
from flowless import cuda_driver
cuda_driver.compute_capability = lambda: (8, 9)
from flowless.engines.backends.onnxruntime_cuda import why_not_cuda
print(json.dumps(why_not_cuda()))
"""


@pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="needs gcc on Linux")
def test_a_driver_that_is_too_old(tmp_path: Path, no_gpu_here: None) -> None:
    """The provider's library loads, with CUDA's from the environment, and CUDA itself finds the driver too old for it."""
    (tmp_path / "driver.c").write_text(_A_DRIVER_TOO_OLD)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    reason = json.loads(done.stdout)
    assert "(CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version)" in reason


_HOST = """
import sys, flowless
flowless.load(sys.argv[1], "onnxruntime", "fp32")
print("loaded", file=sys.stderr, flush=True)
import onnxruntime
onnxruntime.InferenceSession(sys.argv[2], providers=["CUDAExecutionProvider"])
"""


def test_the_host_keeps_its_own_log(built: Path, tmp_path: Path, no_gpu_here: None) -> None:
    """An engine sets its session's log level; the process-wide level belongs to the host application and stays."""
    if onnxruntime_cuda.PROVIDER not in onnxruntime.get_available_providers():
        pytest.skip("the mistake is to ask for CUDA where there is none")
    smallest = tmp_path / "smallest.onnx"
    smallest.write_bytes(onnxruntime_cuda.SMALLEST)
    done = subprocess.run([sys.executable, "-c", _HOST, str(built), str(smallest)], check=True, capture_output=True, text=True, timeout=120)
    before, _, after = done.stderr.partition("loaded\n")
    assert before == ""
    assert "Failed to load library" in after

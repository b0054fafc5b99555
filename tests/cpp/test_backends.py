"""The C++ backends compute what Python's compute, bit for bit, and refuse with the same sentences."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import flowless
from flowless.engines.backends import tensorrt_backend
from flowless.engines.backends.openvino_core import computes_in
from flowless.engines.backends.tensorrt_process import tensorrt_process
from flowless.engines.bundle.compatibility import Here, mismatch
from flowless.engines.bundle.manifest import Artefact, Manifest, read_manifest
from flowless.errors import FlowlessError
from flowless.export.build_engine import build
from flowless.export.verify.checks import Checks
from flowless.pipeline.clip.preprocess import load_clip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
CPP = ROOT / "engines" / "cpp"
PROGRAMS = Path(__file__).with_name("backend_programs")
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{CPP / 'include'}", f"-I{CPP / 'src'}"]
#: Exit codes of the driver: flowless_status.
INVALID, DAMAGED, UNSUPPORTED, RUNTIME = 1, 3, 4, 5


@pytest.fixture(scope="session")
def driver(cpp_build) -> Path:
    """The program `engines/cpp/tests/backend_driver.cpp`."""
    return cpp_build("release") / "tests" / "backend_driver"


def run(*command: str | Path) -> str:
    """Run a program, which must succeed; return its standard output."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def scores(driver, tmp_path) -> Callable[..., tuple[np.ndarray, str]]:
    """Return a function that scores clips in C++: float32 `[B, classes]`, and `DEVICE|COMPUTES|NOTE`."""

    def compute(bundle: Path, target: str, precision: str, clips: np.ndarray, *, command: str = "scores") -> tuple[np.ndarray, str]:
        given, made = tmp_path / "clips.raw", tmp_path / "scores.raw"
        clips.tofile(given)
        about = run(driver, command, bundle, target, precision, given, str(len(clips)), made)
        return np.fromfile(made, np.float32).reshape(len(clips), -1), about.rstrip("\n")

    return compute


@pytest.fixture
def refused(driver, tmp_path) -> Callable[..., tuple[int, str]]:
    """Return a function that scores a clip in C++, which must fail: the status and the only line that it prints."""

    def compute(bundle: Path, target: str, precision: str, *device: str) -> tuple[int, str]:
        given = tmp_path / "clip.raw"
        np.zeros(read_manifest(bundle).spec.shape, np.uint8).tofile(given)
        command = [driver, "scores", bundle, target, precision, given, "1", tmp_path / "scores.raw", *device]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        return done.returncode, line

    return compute


@pytest.fixture
def some_clips(videos, request) -> Callable[[Manifest], np.ndarray]:
    """Return a function that gives a bundle's clips of generated videos and, with FLOWLESS_CLIPS, of real ones."""
    paths = list(videos)
    if os.environ.get("FLOWLESS_CLIPS"):
        paths += [request.getfixturevalue("clips") / name for name in ("nasa_13013.mp4", "h265_video.mp4", "gestures/milk.mkv")]
    return lambda manifest: np.concatenate([load_clip(path, manifest.spec) for path in paths])


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert len(np.unique(theirs.round(3), axis=0)) > 1, "the scores do not depend on the clip"
    assert ours.dtype == theirs.dtype
    assert ours.tobytes() == theirs.tobytes(), f"they differ by {np.abs(ours - theirs).max()}"


def onnxruntime_there() -> None:
    if not os.environ.get("ONNXRUNTIME_ROOT"):
        pytest.skip("ONNXRUNTIME_ROOT is not set: the library is built without ONNX Runtime")


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_scores_of_clips_equal_pythons(target, built, scores, some_clips) -> None:
    if target == "onnxruntime":
        onnxruntime_there()
    engine = flowless.load(built, target, "fp32", threads=1)
    clips = some_clips(read_manifest(built))
    found, about = scores(built, target, "fp32", clips)
    assert_same_bits(found, engine(clips))
    assert about == "CPU||"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_scores_in_lower_precisions_equal_pythons(precision, learnt, calibration, scores, some_clips, tmp_path) -> None:
    if precision == "bf16" and computes_in("bf16") != "bf16":
        pytest.skip("OpenVINO does not compute in bf16 on this processor")
    bundle = Path(shutil.copytree(learnt("pan-lite-r18"), tmp_path / "learnt"))
    given = calibration if precision == "int8" else None
    build(bundle, target="openvino", precision=precision, checks=Checks(slower=True, parity=False), calibration=given)
    engine = flowless.load(bundle, "openvino", precision, threads=1)
    clips = some_clips(read_manifest(bundle))
    found, about = scores(bundle, "openvino", precision, clips)
    assert_same_bits(found, engine(clips))
    exact = flowless.load(bundle, "openvino", "fp32", threads=1)(clips)
    assert not np.array_equal(found, exact), "computed in fp32"
    assert about == "CPU||"


def test_a_precision_that_the_processor_has_not_is_reported(built, scores, some_clips, tmp_path) -> None:
    """Where OpenVINO ignores a hint, both say so in the same place; where it does not, neither does."""
    bundle = Path(shutil.copytree(built, tmp_path / "hinted"))
    change_engine(bundle, "openvino", precision="fp16", options={"hint": "f16"})
    engine = flowless.load(bundle, "openvino", "fp16", threads=1)
    clips = some_clips(read_manifest(bundle))
    found, about = scores(bundle, "openvino", "fp16", clips)
    assert_same_bits(found, engine(clips))
    device, computes, note = about.split("|")
    assert device == "CPU"
    assert (computes or "fp16") == engine.precision
    assert engine.why.endswith(note)
    assert bool(note) == (engine.precision != "fp16")


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_an_online_graph_steps_as_in_python(target, film_bundles, scores, some_clips) -> None:
    if target == "onnxruntime":
        onnxruntime_there()
    bundle = film_bundles["online"]
    engine = flowless.load(bundle, target, "fp32", threads=1)
    clips = some_clips(read_manifest(bundle))
    whole, _ = scores(bundle, target, "fp32", clips)
    assert_same_bits(whole, engine(clips))
    frames = np.ascontiguousarray(clips[:, :, 0].swapaxes(0, 1))
    memory, expected = np.repeat(frames[0][:, None], len(frames) - 1, axis=1), np.empty(0)
    for frame in frames:
        expected, memory = engine.step(frame, memory)
    stepped, _ = scores(bundle, target, "fp32", clips, command="stream")
    assert_same_bits(stepped, expected)


def change_engine(bundle: Path, target: str, **changes: object) -> None:
    """Change the record of a bundle's engine."""
    path = bundle / "manifest.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for item in record["artefacts"]:
        if item["target"] == target:
            item.update(changes)
    path.write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_graph_of_other_sizes_than_the_manifests_is_refused(target, built, refused, tmp_path) -> None:
    if target == "onnxruntime":
        onnxruntime_there()
    bundle = Path(shutil.copytree(built, tmp_path / "other"))
    path = bundle / "manifest.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"labels": [*record["labels"], "one more"]}), encoding="utf-8")
    status, line = refused(bundle, target, "fp32")
    assert status == DAMAGED
    assert "its graph has 'scores'" in line
    assert line.endswith("mean float32 [B, 7]. Copy the bundle again, whole.")


def test_files_that_the_libraries_refuse(built, refused, tmp_path) -> None:
    bundle = Path(shutil.copytree(built, tmp_path / "bad"))
    engine = bundle / "openvino-fp32" / "model.xml"
    whole = engine.read_text(encoding="utf-8")
    for text, says in (("no model", "it is not a model in OpenVINO's format"), (whole[: len(whole) // 2], "")):
        engine.write_text(text, encoding="utf-8")
        status, line = refused(bundle, "openvino", "fp32")
        assert status == RUNTIME
        assert f"model.xml: openvino cannot load it ({says}" in line
        assert line.endswith("; build it again with: flowless build BUNDLE --target openvino --precision fp32 --force.")
    # The truncated file: OpenVINO's reason is shown as Python shows it.
    artefact = read_manifest(bundle).artefact("openvino", "fp32")
    assert artefact is not None
    with pytest.raises(FlowlessError) as caught:
        flowless.engines.backends.backend.open_backend(artefact, engine, classes=6)
    assert line == str(caught.value)


def test_devices(built, refused) -> None:
    assert refused(built, "openvino", "fp32", "TPU") == (
        INVALID,
        "device is 'TPU'; it must be CPU or GPU, or nothing for the target's own.",
    )
    status, line = refused(built, "openvino", "fp32", "GPU")
    assert status == UNSUPPORTED
    assert line == "device is GPU; openvino runs on the CPU alone. Name no device, or another target."


def test_an_engine_of_a_gpu_ends_in_a_status(driver, built, refused) -> None:
    """Compiled in or not; without a GPU nothing else happens."""
    if flowless.cuda_driver.compute_capability() is not None:
        pytest.skip("there is a GPU here")
    line = run(driver, "why-not", built, "tensorrt-rtx", "fp32").rstrip("\n")
    there = bool(os.environ.get("TENSORRT_RTX_ROOT"))
    lacks = "this build of libflowless has no TensorRT-RTX (configure with -DTENSORRT_RTX_ROOT=FOLDER)"
    assert line == ("there is no NVIDIA GPU here" if there else lacks)
    assert refused(built, "tensorrt-rtx", "fp32") == (UNSUPPORTED, f"{built}: the engine tensorrt-rtx fp32 does not run here: {line}.")


RTX_KNOWS = (75, 80, 86, 89, 120, 121)


def cases() -> list[tuple[Artefact, Here]]:
    """Every combination of what an engine was built for and what a machine has."""
    machines = [
        Here(version=version, capability=capability, gpu=gpu, platform=platform)
        for version in ("8.6.1.6", "10.9.0.34", "10.13.3.9", "11.0.0.1", "1.7.1.116", "")
        for capability, gpu in ((75, "Tesla T4"), (86, "NVIDIA A10"), (90, None), (120, "NVIDIA GeForce RTX 5090"))
        for platform in ("linux-x86_64", "windows-amd64")
    ]
    options = [
        {"platform": "linux-x86_64", "gpu": "NVIDIA A10", "gpu_compute_capability": 86, "compute_capabilities": [], "portable": False},
        {"platform": "linux-x86_64", "gpu": "NVIDIA A10", "gpu_compute_capability": 86, "compute_capabilities": [], "portable": True},
        {"gpu": "NVIDIA GeForce RTX 3090"},
        {"gpu_compute_capability": 86},
        {"compute_capabilities": [75, 120]},
        {},
    ]
    table = []
    for target, built_by in (("tensorrt", ("10.13.3.9", "10.14", "11.x.0", None)), ("tensorrt-rtx", ("1.7.1.116", "1.6.0.9", None))):
        for version in built_by:
            for option in options:
                versions = {} if version is None else {target.replace("-", "_"): version}
                artefact = Artefact(
                    target=target,  # pyright: ignore[reportArgumentType]
                    precision="fp16",
                    status="built, not run here",
                    files=("x/model.engine",),
                    versions=versions,
                    options=option,
                )
                known = RTX_KNOWS if target == "tensorrt-rtx" else ()
                table += [(artefact, dataclasses.replace(machine, known=known)) for machine in machines]
    return table


def test_what_does_not_fit_is_described_as_in_python(driver) -> None:
    table = cases()
    given = [
        {
            "artefact": {"target": item.target, "precision": item.precision, "versions": item.versions, "options": item.options},
            "here": {**dataclasses.asdict(here), "gpu": here.gpu or ""},
        }
        for item, here in table
    ]
    done = subprocess.run([driver, "mismatch"], input=json.dumps(given), capture_output=True, text=True, check=True)
    expected = [mismatch(item, here) for item, here in table]
    assert 50 < expected.count(None) < len(expected) - 50
    assert json.loads(done.stdout) == expected


def cuda_headers() -> Path:
    nvcc = Path(shutil.which(os.environ.get("CUDACXX") or "nvcc") or "/usr/local/cuda/bin/nvcc")
    for folder in (nvcc.resolve().parents[1] / "include", Path("/usr/local/cuda/include")):
        if (folder / "cuda.h").is_file() and (folder / "cuda_runtime_api.h").is_file():
            return folder
    pytest.skip("CUDA's headers are not here")


def compile_source(source: Path, *headers: Path, to: Path) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not here")
    includes = [word for folder in headers for word in ("-isystem", str(folder))]
    run("g++", *FLAGS, *includes, "-c", source, "-o", to)
    return to


def headers_of(variable: str) -> Path:
    """Return the folder of the headers of TensorRT or TensorRT-RTX."""
    root = os.environ.get(variable)
    if not root:
        pytest.skip(f"{variable} is not set: no such headers here, so this part is not compiled")
    return next(folder for folder in (Path(root) / "include", Path(root)) if (folder / "NvInferRuntime.h").is_file())


def test_the_drivers_functions_have_cudas_signatures(tmp_path) -> None:
    compile_source(PROGRAMS / "cuda_signatures.cpp", cuda_headers(), to=tmp_path / "signatures.o")


@pytest.mark.parametrize("variable", ["TENSORRT_ROOT", "TENSORRT_RTX_ROOT"])
def test_tensorrt_compiles_and_links_nothing_of_nvidias(variable, tmp_path) -> None:
    made = compile_source(CPP / "src/backends/tensorrt.cpp", headers_of(variable), cuda_headers(), to=tmp_path / "tensorrt.o")
    names = run("nm", "-C", made)
    missing = [line for line in names.splitlines() if " U " in line and "flowless::detail" not in line]
    assert not [line for line in missing if any(part in line for part in ("nvinfer1", "nvonnxparser", "createInfer", "cuda", " cu"))]
    # The classes of the two libraries must not meet in one program.
    assert ("nvinfer1_rtx::" in names) == (variable == "TENSORRT_RTX_ROOT")
    assert ("nvinfer1::" in names) == (variable == "TENSORRT_ROOT")


def test_the_runtime_of_tensorrt_rtx_starts_without_a_gpu(tmp_path, monkeypatch) -> None:
    """Its library is called through the classes of the headers, and its reasons are gathered as Python gathers them."""
    headers = headers_of("TENSORRT_RTX_ROOT")
    libraries = importlib.util.find_spec("tensorrt_rtx_libs")
    if libraries is None or not libraries.submodule_search_locations:
        pytest.skip("tensorrt_rtx is not installed")
    objects = [
        compile_source(source, headers, cuda_headers(), to=tmp_path / f"{source.stem}.o")
        for source in (PROGRAMS / "rtx_runtime.cpp", CPP / "src/status.cpp")
    ]
    program = tmp_path / "rtx_runtime"
    run("g++", *objects, "-ldl", "-pthread", "-o", program)
    file = tmp_path / "model.engine"
    file.write_bytes(b"no engine at all" * 100)
    monkeypatch.setenv("FLOWLESS_TENSORRT_LIBRARIES", libraries.submodule_search_locations[0])
    name, reason = run(program, file).splitlines()
    process = tensorrt_process("tensorrt-rtx")
    artefact = Artefact(target="tensorrt-rtx", precision="fp32", status="built, not run here", files=("x",), versions={}, options={})
    with pytest.raises(FlowlessError) as caught:
        tensorrt_backend.open_engine(process, process.trt.Runtime(process.logger), file, artefact=artefact)
    assert str(caught.value).startswith(f"{file}: {name} cannot read this engine here ({reason}); build it again")
    assert "malformed engine" in reason
    monkeypatch.setenv("FLOWLESS_TENSORRT_LIBRARIES", str(tmp_path / "nowhere"))
    done = subprocess.run([program, file], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("tensorrt_rtx cannot be loaded (")
    assert done.stderr.endswith("set FLOWLESS_TENSORRT_LIBRARIES to its folder\n")

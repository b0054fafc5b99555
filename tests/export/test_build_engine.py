"""Building engines: verified before they are kept, and the bundle never in between."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

import flowless
from flowless import cuda_driver
from flowless.cli import main
from flowless.engines.bundle.manifest import read_manifest
from flowless.errors import CheckFailed, FlowlessError
from flowless.export import build_engine
from flowless.export.build_engine import build
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.engine_key import engine_key
from flowless.export.verify import gates

FORCED = BuildOptions(force=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_openvino_is_verified(built):
    manifest = read_manifest(built)
    engine = manifest.artefact("openvino", "fp32")
    assert engine is not None
    assert engine.status == "verified"
    assert engine.max_abs_diff is not None
    assert 0 < engine.max_abs_diff < manifest.parity["allowed"]
    assert engine.files == ("openvino-fp32/model.xml", "openvino-fp32/model.bin")
    manifest.check(manifest.files)


def test_onnxruntime_is_the_graph(exported):
    engine = read_manifest(exported).artefact("onnxruntime", "fp32")
    assert engine is not None
    assert (engine.files, engine.status) == (("model.onnx",), "verified")


def test_rtx_claims_no_more_than_it_knows(built):
    from flowless.engines.backends.backend import why_not

    engine = read_manifest(built).artefact("tensorrt-rtx", "fp32")
    assert engine is not None
    if why_not("tensorrt-rtx"):
        assert (engine.status, engine.max_abs_diff) == ("built, not run here", None)
    else:
        assert engine.status == "verified"
    assert engine.options["batch"] == [1, 1, 8]


def test_rtx_for_named_gpus(bundle):
    options = BuildOptions(compute_capabilities=(86, 89), batch=(1, 2, 4))
    engine = build(bundle, target="tensorrt-rtx", options=options)
    assert engine.options.items() >= {"batch": [1, 2, 4], "compute_capabilities": [86, 89]}.items()
    assert (bundle / engine.files[0]).stat().st_size > 100_000
    manifest = read_manifest(bundle)
    manifest.check(manifest.files)


def test_what_is_there_is_not_built_again(bundle, monkeypatch):
    monkeypatch.setattr(build_engine, "compile_engine", lambda *_: pytest.fail("built again"))
    before = contents(bundle)
    assert build(bundle, target="openvino").status == "verified"
    assert contents(bundle) == before


def test_tensorrts_key_is_of_the_gpu_and_of_the_plugins_bytes(bundle, tmp_path, monkeypatch):
    manifest = read_manifest(bundle)

    def put(name: str, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(cuda_driver, "gpu_name", lambda: name)
        monkeypatch.setattr(cuda_driver, "compute_capability", lambda: capability)

    def keys(**options: Any) -> list[str]:
        return [engine_key(manifest, target, "fp32", BuildOptions(**options), None) for target in ("tensorrt", "tensorrt-rtx", "openvino")]

    put("NVIDIA A10", (8, 6))
    a10, a10_portable = keys(), keys(portable=True)
    put("Tesla T4", (7, 5))
    t4, t4_portable = keys(), keys(portable=True)
    assert a10[0] != t4[0]
    assert (a10[1:], a10_portable) == (t4[1:], t4_portable), "these run on more than one GPU"
    library = tmp_path / "libpa.so"
    found = []
    for content in (b"one", b"two"):
        library.write_bytes(content)
        found += [keys(plugin_library=library), keys(pa="plugin", plugin_library=library)]
    assert len({one[0] for one in found}) == 4
    assert all(one[1:] == t4[1:] for one in found[::2]), "the others have no plugin"


def test_force_builds_again(bundle):
    (bundle / "openvino-fp32" / "model.bin").write_bytes(b"rubbish")
    with pytest.raises(FlowlessError, match="damaged"):
        build(bundle, target="openvino")
    assert build(bundle, target="openvino", options=FORCED).status == "verified"
    manifest = read_manifest(bundle)
    manifest.check(manifest.files)


def test_a_wrong_engine_is_not_kept(bundle, monkeypatch):
    """The target gets a graph with one filter scaled by 1.05: no engine, and the bundle as it was."""
    from flowless.export.targets import build_openvino

    honest = build_openvino.build_openvino

    def faulty(proto, folder, **rest):
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        item = max(changed.graph.initializer, key=lambda item: len(item.raw_data))
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 1.05, item.name))
        return honest(changed, folder, **rest)

    monkeypatch.setattr(build_openvino, "build_openvino", faulty)
    before = contents(bundle)
    with pytest.raises(CheckFailed, match=r"differ from PyTorch.* It was not kept: ") as caught:
        build(bundle, target="openvino", options=FORCED)
    assert "Nothing" not in str(caught.value), "the older engine is still there"
    assert contents(bundle) == before
    assert main(["build", str(bundle), "--target", "openvino", "--force"]) == 3


def test_a_full_disk_while_an_engine_is_written(bundle, monkeypatch):
    before = contents(bundle)

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(FlowlessError, match="the disk is full"):
            build(bundle, target="tensorrt-rtx", options=FORCED)
    assert contents(bundle) == before
    assert {path.name for path in bundle.iterdir()} == {
        "manifest.json",
        "model.onnx",
        "reference.npz",
        "openvino-fp32",
        "tensorrt-rtx-fp32",
    }


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "stopped"])
def test_an_engine_that_cannot_be_replaced_stays(exported, tmp_path, monkeypatch, failure):
    import shutil

    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    for _ in range(2):
        build(bundle, target="openvino", options=FORCED)
        before = contents(bundle)

        def fail(*rest, **more):
            raise failure

        with monkeypatch.context() as patch, pytest.raises((FlowlessError, KeyboardInterrupt)):
            patch.setattr(Path, "write_text", fail)
            build(bundle, target="openvino", options=FORCED)
        assert contents(bundle) == before, "the manifest still names it, and its files are there"
        assert flowless.load(bundle, "openvino", "fp32").target == "openvino"
    folders = {path.name for path in bundle.iterdir() if path.is_dir()}
    assert len(folders) == 1, "what was replaced is removed"
    assert folders < {"openvino-fp32", "openvino-fp32-2"}


def test_a_ctrl_c_that_a_library_swallows_commits_nothing(exported, tmp_path, monkeypatch):
    import shutil

    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    before, run_gates = contents(bundle), gates.run_gates

    def swallow(*rest):
        with contextlib.suppress(BaseException):  # as a library does that tries to import another one
            signal.raise_signal(signal.SIGINT)
        return run_gates(*rest)

    monkeypatch.setattr(gates, "run_gates", swallow)
    assert main(["build", str(bundle), "--target", "openvino"]) == 130
    assert contents(bundle) == before


def test_a_build_needs_no_pytorch(exported, tmp_path):
    """Importing it takes longer than the rest of a small build."""
    import shutil

    bundle = shutil.copytree(exported, tmp_path / "bundle")
    command = f"main(['build', {str(bundle)!r}, '--target', 'openvino'])"
    code = f"import sys; from flowless.cli import main; {command}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_full_disk_while_the_manifest_is_written(exported, tmp_path, monkeypatch):
    import shutil

    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    before = contents(bundle)

    def full(self, *rest, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(FlowlessError, match=r"manifest\.json: the disk is full"):
            build(bundle, target="openvino")
    assert contents(bundle) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size")
def test_files_that_do_not_fit(bundle, checkpoint, tmp_path):
    """The system itself refuses files over 0.2 MB, to Python and to the libraries' own writing: one paragraph each, nothing left."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
import flowless
from flowless.cli import main
bundle, checkpoint, out = sys.argv[1:]
print([
    main(["build", bundle, "--target", "openvino", "--force"]),
    main(["build", bundle, "--target", "tensorrt-rtx", "--force"]),
    main(["export", checkpoint, "--out", out]),
])
"""
    before = contents(bundle)
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", code, bundle, checkpoint, out], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[1, 1, 1]"], done.stderr
    assert "Traceback" not in done.stderr
    assert "".join(done.stderr.split()).count("freesomespaceandrunagain") == 3
    assert contents(bundle) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_damaged_reference_clips(bundle):
    (bundle / "reference.npz").write_bytes(b"x")
    with pytest.raises(FlowlessError, match=r"reference\.npz: damaged"):
        build(bundle, target="openvino", options=FORCED)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "openvino", "--precision", "int8"], "int8 needs videos to measure its scales on"),
        (["--target", "openvino", "--precision", "int8", "--calibrate", "gone.jsonl"], "no such index"),
        (["--target", "openvino", "--data", "gone.jsonl"], "data is gone.jsonl: no such index"),
        (["--target", "openvino", "--precision", "auto", "--data", "gone.jsonl"], "data is gone.jsonl: no such index"),
        (["--target", "openvino", "--max-drop", "-1"], "from 0 to 100 points"),
        (["--target", "openvino", "--precision", "auto", "--threads", "0"], "threads is 0; it must be at least 1"),
        (["--target", "openvino", "--portable"], "--target tensorrt"),
        (["--target", "tensorrt-rtx", "--compute-capability", "90"], "data-centre GPU"),
        (["--target", "tensorrt-rtx", "--batch", "4", "2", "1"], "MIN OPT MAX"),
    ],
)
def test_what_build_refuses(arguments, says, bundle, capsys):
    before = contents(bundle)
    assert main(["build", str(bundle), *arguments]) == 1
    assert says.replace(" ", "") in "".join(capsys.readouterr().err.split())
    assert contents(bundle) == before


def test_a_precision_that_does_not_exist(bundle, capsys):
    with pytest.raises(FlowlessError, match="'fp7'; it must be one of fp32, bf16, fp16, int8"):
        build(bundle, target="openvino", precision="fp7")
    with pytest.raises(SystemExit, match="2"):
        main(["build", str(bundle), "--target", "openvino", "--precision", "fp7"])
    assert "fp16" in capsys.readouterr().err


def test_tensorrt_says_what_is_missing(bundle, capsys):
    import importlib.util

    if importlib.util.find_spec("tensorrt"):
        pytest.skip("tensorrt is installed here")
    assert main(["build", str(bundle), "--target", "tensorrt"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "tensorrt is not installed" in said
    assert "tensorrt-rtx" in said


def test_all_builds_what_can_be_built(exported, tmp_path, capsys):
    import shutil

    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    assert main(["build", str(bundle), "--target", "all", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = {row["target"]: row for row in document["engines"]}
    assert {"openvino", "onnxruntime", "tensorrt-rtx"} <= set(found)
    assert set(found) | set(document["left_out"]) == {"openvino", "onnxruntime", "tensorrt-rtx", "tensorrt"}
    assert all(row["bytes"] > 0 for row in found.values())


def test_the_script_runs_by_its_path(bundle):
    script = Path(build_engine.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(bundle), "--target", "openvino", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engines"][0]["status"] == "verified"

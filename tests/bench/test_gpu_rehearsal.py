"""The GPU suite's parts on the CPU, each in a process of its own: what fails here would fail on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flowless.bench.gpu.parts import PARTS

#: Parts that need no PyAV, which a machine that is lent may lack; the others run with it. `compiled` is a C++ compiler's minutes.
WITHOUT_PYAV = ("peak", "network", "eager", "graphs", "onnxruntime", "models", "train-step", "shapes")
WITH_PYAV = tuple(name for name in PARTS if name not in {*WITHOUT_PYAV, "compiled"})

Parts = dict[str, dict[str, Any]]


#: The command, whose parts' processes begin with PyTorch and timm loaded, which takes most of a rehearsal. (That a part begins by
#: itself: test_gpu_bench.py.)
PRELOADED = """
import os, subprocess, sys, time, types
import timm, torch
from flowless.bench.gpu import command, subprocess_runner

class Forked:
    def __init__(self, words, *, stdout, **_):
        self.returncode, self.pid = None, os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                os.dup2(stdout.fileno(), 1)
                os.dup2(1, 2)
                if lacks_pyav := os.environ.get("LACKS_PYAV"):
                    # Here, and in what a part starts.
                    sys.modules["av"] = None
                    os.environ["PYTHONPATH"] = lacks_pyav
                code = subprocess_runner.main(words[3:])
            finally:
                os._exit(code)

    def wait(self, timeout=None):
        end = time.monotonic() + (timeout or 60)
        while self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.pid, timeout)
            else:
                time.sleep(0.02)
        return self.returncode

subprocess_runner.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": Forked})
sys.exit(command.main(sys.argv[1:]))
"""


def ran(folder: Path, parts: Sequence[str], **environment: str) -> Parts:
    """Run parts on the CPU, in a work folder that two commands share; return their documents."""
    words = ["--device", "cpu", "--work", str(folder / "work"), "--parts", ",".join(parts), "--out", str(folder / "out.json")]
    done = subprocess.run(
        [sys.executable, "-c", PRELOADED, *words], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text(encoding="utf-8"))["parts"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsal")


@pytest.fixture(scope="module")
def without_pyav(folder: Path) -> Parts:
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'av':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    return ran(folder, (*WITHOUT_PYAV, "files"), LACKS_PYAV=str(folder))


@pytest.fixture(scope="module")
def with_pyav(folder: Path, without_pyav: Parts) -> Parts:
    return ran(folder, WITH_PYAV)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_engines_need_no_pyav(without_pyav: Parts) -> None:
    """INT8 is calibrated and measured, and everything is trained, from arrays; the videos say what they lack."""
    pytest.importorskip("onnxruntime")
    parts = without_pyav
    for name in WITHOUT_PYAV:
        assert parts[name]["status"] == "ran", name
        assert not [why for why in parts[name]["left_out"].values() if why.startswith("not run")], name
    assert parts["videos"]["status"] == "not here: av is not installed"
    assert parts["files"]["status"].startswith("not here: ")
    rows = {name: part["rows"] for name, part in parts.items()}
    assert {row["arithmetic"] for row in rows["peak"]} == {"bf16", "fp16", "int8", "tf32", "fp32"}
    seen = {(row["name"], row["precision"], row["batch"]) for part in ("eager", "onnxruntime") for row in rows[part]}
    assert seen >= {("pytorch eager", precision, batch) for precision in ("fp32", "bf16", "fp16") for batch in (1, 2)}
    assert seen >= {("onnxruntime", precision, batch) for precision in ("fp32", "fp16", "int8") for batch in (1, 2)}
    macs = parts["network"]["facts"]["macs_per_clip"]
    for row in (*rows["eager"], *rows["models"]):
        rate = 2 * row.get("macs_per_clip", macs) * row["clips_per_s"] / 1e12
        assert row["tflop_per_s"] == pytest.approx(rate, rel=1e-2, abs=1e-4)
        assert row["share_of_peak"] > 0
    assert {row["macs_per_clip"] for row in rows["models"]}.isdisjoint({macs})
    assert {row["what"] for row in rows["train-step"]} >= {"bf16 autocast", "bf16 autocast, DDP of one process"}
    assert len(rows["shapes"]) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rehearsal(with_pyav: Parts) -> None:
    """The other parts, in the work folder of the command before: what fails here is a fault of ours."""
    pytest.importorskip("nvidia.dali")
    parts = with_pyav
    away = {name for name, part in parts.items() if part["status"].startswith("not here")}
    assert away >= {"kernels", "sanitizer", "tensorrt", "plugin"}
    assert away <= {"kernels", "sanitizer", *(name for name in PARTS if PARTS[name].needs == PARTS["tensorrt"].needs)}
    assert {name for name, part in parts.items() if part.get("kept")} == {"network", "graphs"}
    for name in set(WITH_PYAV) - away:
        assert parts[name]["status"] == "ran", name
        assert not [why for why in parts[name]["left_out"].values() if why.startswith("not run")], name
    rows = {name: part["rows"] for name, part in parts.items()}
    assert rows["videos"][0]["videos"] == 1
    assert {(row["body"], row["arithmetic"]) for row in rows["persistence"]} == {
        (body, arithmetic) for body in ("plain", "torch") for arithmetic in ("float32", "float16", "uint8")
    }
    assert len(parts["persistence"]["checks"]) == 11
    assert {row["form"] for row in rows["pa-forms"]} >= {"uint8, colours last", "plain by pixels, fp32", "torch.compile by phases, fp32"}
    assert {row["decoder"] for row in rows["decode"]} == {row["decoder"] for row in rows["files"]} == {"pyav", "dali"}
    assert "vp9: every frame" in {check["check"] for check in parts["decode"]["checks"]}


def test_engines_and_graphs_import_no_pyav():
    """Who has arrays needs no PyAV, and a GPU that is lent may lack it."""
    modules = (
        "engines",
        "export.graph.export_graph",
        "export.precision.precisions",
        "export.precision.cast",
        "export.precision.int8",
        "export.targets.target_graph",
        "export.verify.parity",
    )
    code = "\n".join(["import sys", *(f"import flowless.{name}" for name in modules), "print(*sys.modules)"])
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "av" not in loaded

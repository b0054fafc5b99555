"""Parts of the GPU suite in processes of their own: what each costs the others when it fails, and what is kept of it."""

from __future__ import annotations

import fcntl
import importlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flowless.bench.gpu.parts import PARTS
from flowless.bench.gpu.results import Results, Settings, add_shares, empty
from flowless.bench.gpu.subprocess_runner import failures, run_part

SMALL_PARTS = """
import ctypes, os, subprocess, sys, time
from flowless.bench.gpu.results import NotHere

def fine(results):
    results.row(precision="fp32", clips_per_s=10.0)
    results.check("close", passed=True, error=float("nan"))

def raises(results):
    results.row(first=1)
    raise ValueError("the second row is wrong")

def crashes(results):
    results.row(first=1)
    print("about to read address 0", flush=True)
    ctypes.string_at(0)

def leaves(results):
    os._exit(7)

def hangs(results):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    results.fact(child=child.pid)
    results.attempt("the long step", lambda: time.sleep(600))

def lacks(results):
    import a_library_that_does_not_exist

def lacks_more(results):
    raise NotHere("no such card")

def steps(results):
    def raising(error):
        raise error
    results.attempt("broken", lambda: raising(RuntimeError("wrong\\nin two lines")))
    results.attempt("absent", lambda: lacks(results))
    results.attempt("int8", lambda: raising(RuntimeError("no such convolution")), may_refuse=True)
    results.attempt("ours", lambda: raising(TypeError("a fault of this code is no refusal")), may_refuse=True)
    results.check("far", passed=False, error=2.0)
    results.check("unjudged", passed=None)
    time.sleep(5)
    results.attempt("late", lambda: results.row(late=1))

def makes(results):
    results.row(made_at=time.monotonic())

def makes_slowly(results):
    time.sleep(0.5)
    results.row(made_at=time.monotonic())

def makes_half(results):
    results.row(made_at=time.monotonic())
    results.attempt("half", lambda: lacks.does_not_exist)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "small_parts.py").write_text(SMALL_PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    work = tmp_path / "work"
    work.mkdir()

    def part(function, *, name="kernels", seconds=30.0, quick=False, command=0):
        settings, scratch = Settings(device="cpu", quick=quick, folder=work), tmp_path / f"command{command}"
        scratch.mkdir(exist_ok=True)
        return run_part(name, settings=settings, seconds=seconds, scratch=scratch, function=f"small_parts:{function}")

    return part


def test_a_part_that_runs(run):
    part = run("fine")
    assert part["status"] == "ran"
    assert part["rows"] == [{"precision": "fp32", "clips_per_s": 10.0}]
    assert part["checks"] == [{"check": "close", "passed": True, "error": None}]
    assert set(part) == {"status", "seconds", "facts", "rows", "checks", "left_out", "errors"}
    assert failures("fine", part) == []


def test_a_part_that_fails_keeps_what_it_measured(run):
    part = run("raises")
    assert (part["status"], part["rows"]) == ("failed: ValueError: the second row is wrong", [{"first": 1}])
    assert failures("raises", part) == ["raises: failed: ValueError: the second row is wrong"]
    part = run("crashes")
    assert (part["status"], part["rows"]) == ("failed: ended by SIGSEGV", [{"first": 1}])
    assert "about to read address 0" in part["said"]
    assert run("leaves")["status"] == "failed: ended with exit code 7"


def test_a_part_that_hangs_is_stopped_with_all_that_it_started(run):
    part = run("hangs", seconds=3.0)
    assert part["status"] == "failed: stopped after 3 s, at the long step"
    assert part["seconds"] < 20
    deadline = time.monotonic() + 10  # the system needs a moment to end it
    while alive(part["facts"]["child"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(part["facts"]["child"])


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and not been waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_missing_is_no_failure(run):
    for name, status in (("lacks", "not here: a_library_that_does_not_exist is not installed"), ("lacks_more", "not here: no such card")):
        part = run(name)
        assert part["status"] == status
        assert failures(name, part) == []


def test_a_step_that_fails_costs_no_other(run):
    part = run("steps", seconds=6.0)
    assert part["status"] == "ran"
    assert part["errors"] == {
        "broken": "RuntimeError: wrong | in two lines",
        "ours": "TypeError: a fault of this code is no refusal",
    }
    assert part["left_out"] == {
        "absent": "not here: a_library_that_does_not_exist is not installed",
        "int8": "refused: RuntimeError: no such convolution",
        "late": "not run: no time left",
    }
    assert [line.split(": ")[1] for line in failures("steps", part)] == ["broken", "ours", "far"]


def test_a_work_folder_keeps_what_is_whole(run):
    first = run("makes", name="network")
    again = run("makes", name="network")
    assert (again["rows"], again["kept"]) == (first["rows"], True)
    assert run("makes", name="network", quick=True)["rows"] != first["rows"]
    assert run("makes_half", name="graphs")["errors"]
    assert "kept" not in run("makes_half", name="graphs")
    assert "kept" not in run("makes"), "only of the parts that say so"


def test_a_command_waits_for_what_another_makes(run, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        with (tmp_path / "work" / "network.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            both = [pool.submit(run, "makes_slowly", name="network", command=number) for number in (1, 2)]
            late = run("makes", name="network", seconds=3.0)
        first, second = (part.result() for part in both)
    assert late["status"].startswith("not run: another command was making it")
    assert failures("network", late) == []
    assert first["rows"] == second["rows"]
    assert ("kept" in first) != ("kept" in second)


def test_rows_get_their_share_of_the_peak(tmp_path):
    parts = {name: empty("ran") for name in ("peak", "network", "eager", "files")}
    parts["peak"]["rows"] = [{"arithmetic": "bf16", "tflop_per_s": 400.0}]
    parts["network"]["facts"] = {"macs_per_clip": 35.2e9}
    rows = [{"precision": "bf16", "clips_per_s": 1000.0}, {"precision": "fp32", "clips_per_s": 100.0}]
    own = {"precision": "bf16", "clips_per_s": 1000.0, "macs_per_clip": 10e9}
    parts["eager"]["rows"] = [*rows, own]
    parts["files"]["rows"] = [{"clips_per_s": 900.0}]
    for _ in range(2):  # once after every part
        add_shares(parts)
    assert (rows[0]["tflop_per_s"], rows[0]["share_of_peak"]) == (70.4, 0.176)
    assert (rows[1]["tflop_per_s"], rows[1].get("share_of_peak")) == (7.04, None)
    assert (own["tflop_per_s"], own["share_of_peak"]) == (20.0, 0.05)
    assert parts["files"]["rows"] == [{"clips_per_s": 900.0}]


def test_every_part_is_a_function():
    """The names are text: only a GPU would find out else."""
    for part in PARTS.values():
        module, _, function = part.function.partition(":")
        assert callable(getattr(importlib.import_module(f"flowless.bench.gpu.{module}"), function))


def test_nothing_heavy_is_imported_before_a_part_needs_it():
    code = "import sys, flowless.bench.gpu.command, flowless.bench.gpu.subprocess_runner; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"torch", "rich", "tyro", "av", "timm", "onnx", "polygraphy"}


@pytest.mark.parametrize("shift", [0, 1])
def test_a_wrong_frame_is_found(shift, tmp_path, monkeypatch):
    """The decoder's frames are right; asked for one frame further on, each of them is wrong."""
    pytest.importorskip("nvidia.dali")
    from flowless.bench.gpu import video
    from flowless.pipeline.clip import sampling

    results = Results(path=tmp_path / "video.json", settings=Settings(device="cpu", folder=tmp_path))
    monkeypatch.setattr("flowless.bench.lib.sample_videos.SIZES", ((160, 128),))
    video.videos(results)
    assert not results.document["left_out"]
    right = sampling.clip_indices
    monkeypatch.setattr(sampling, "clip_indices", lambda *args, **rest: np.minimum(right(*args, **rest) + shift, 39))
    video._compare(results, "vp9", "vp9", "dali", 9)
    (check,) = results.document["checks"]
    assert (check["passed"], len(check["wrong"])) == ((True, 0) if shift == 0 else (False, 8))
    assert json.loads((tmp_path / "video.json").read_text())["checks"] == [check]

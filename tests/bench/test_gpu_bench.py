"""The GPU suite without a GPU: its document, what each part says, that a part costs no other, and a rehearsal on the CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowless.bench.gpu import command as gpu
from flowless.bench.gpu.ledger import Ledger, NotHere, Settings, plain
from flowless.bench.gpu.machine import gpu_facts, tera_per_second
from flowless.bench.gpu.parts import PARTS
from flowless.bench.gpu.sanitizer import shares_of
from flowless.bench.gpu.shares import add_shares
from flowless.bench.gpu.subprocess_runner import failures, run_part
from flowless.bench.gpu.work import Work

SMALL_PARTS = """
import ctypes
import os
import subprocess
import sys
import time
from flowless.bench.gpu.ledger import NotHere

def fine(ledger):
    ledger.row(precision="fp32", clips_per_s=10.0)
    ledger.check("close", passed=True, error=float("nan"))

def raises(ledger):
    ledger.row(first=1)
    raise ValueError("the second row is wrong")

def crashes(ledger):
    ledger.row(first=1)
    print("about to read nothing", flush=True)
    ctypes.string_at(0)

def leaves(ledger):
    os._exit(7)

def hangs(ledger):
    ledger.row(first=1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ledger.fact(child=child.pid)
    time.sleep(600)

def holds(ledger):
    files = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")]
    ledger.fact(held=[os.path.basename(name) for name in files if name.endswith(".lock")])

def lacks(ledger):
    import a_library_that_nobody_has

def lacks_more(ledger):
    raise NotHere("no such card")

def slow_piece(ledger):
    with ledger.trial("the first"):
        ledger.row(first=1)
    with ledger.trial("the second"):
        time.sleep(600)

def trials(ledger):
    with ledger.trial("broken"):
        raise RuntimeError("wrong\\nin two lines")
    with ledger.trial("absent"):
        import a_library_that_nobody_has
    with ledger.trial("int8", may_refuse=True):
        raise RuntimeError("no such convolution")
    with ledger.trial("ours", may_refuse=True):
        raise TypeError("a mistake in the suite is no refusal")
    ledger.check("far", passed=False, error=2.0)
    ledger.check("unjudged", passed=None)
    ledger.in_time("long", needs=100)
    while ledger.in_time("late"):
        time.sleep(0.05)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "small_parts.py").write_text(SMALL_PARTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    work = tmp_path / "work"
    work.mkdir()

    def part(name, seconds=30.0, held=()):
        return run_part(name, f"small_parts:{name}", settings=Settings(work=str(work)), seconds=seconds, held=held)

    return part


def test_a_part_that_runs(run):
    part = run("fine")
    assert part["status"] == "ran"
    assert part["rows"] == [{"precision": "fp32", "clips_per_s": 10.0}]
    assert part["checks"] == [{"check": "close", "passed": True, "error": None}]
    assert set(part) == {"status", "seconds", "facts", "rows", "checks", "left_out", "errors"}
    assert failures("fine", part) == []


def test_a_part_that_raises_keeps_what_it_had(run):
    part = run("raises")
    assert part["status"] == "failed: ValueError: the second row is wrong"
    assert part["rows"] == [{"first": 1}]
    assert failures("raises", part) == ["raises: failed: ValueError: the second row is wrong"]


def test_a_part_that_crashes_keeps_what_it_had(run):
    part = run("crashes")
    assert part["status"] == "failed: its process was ended by SIGSEGV"
    assert "about to read nothing" in part["said"]
    assert part["rows"] == [{"first": 1}]
    assert run("leaves")["status"] == "failed: its process ended with exit code 7"


def test_a_part_that_hangs_is_stopped_with_all_that_it_started(run):
    started = time.monotonic()
    part = run("hangs", seconds=4.0)
    assert time.monotonic() - started < 20
    assert part["status"] == "failed: stopped after 4 s"
    assert part["rows"] == [{"first": 1}]
    deadline = time.monotonic() + 10  # the system needs a moment to end it
    while alive(part["facts"]["child"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(part["facts"]["child"])


def test_a_part_that_is_stopped_says_where(run):
    part = run("slow_piece", seconds=4.0)
    assert part["status"] == "failed: stopped after 4 s, at the second"
    assert "at" not in part
    assert part["rows"] == [{"first": 1}]


def test_a_part_holds_the_lock_of_what_it_makes(tmp_path, run):
    """It may outlive its command, which holds the lock as well."""
    with (tmp_path / "network.lock").open("w") as lock:
        assert run("holds", held=(lock.fileno(),))["facts"]["held"] == ["network.lock"]
        assert run("holds")["facts"]["held"] == []


def alive(process: int) -> bool:
    """Whether a process still runs; one that has ended and that nobody has asked about yet does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_what_is_missing_is_no_failure(run):
    for name, says in (("lacks", "not here: a_library_that_nobody_has is not installed"), ("lacks_more", "not here: no such card")):
        part = run(name)
        assert part["status"] == says
        assert failures(name, part) == []


def test_pieces_of_a_part_fail_for_themselves(run):
    part = run("trials", seconds=5.0)
    assert part["status"] == "ran"
    assert part["errors"] == {
        "broken": "RuntimeError: wrong | in two lines",
        "ours": "TypeError: a mistake in the suite is no refusal",
    }
    assert part["left_out"] == {
        "absent": "not here: a_library_that_nobody_has is not installed",
        "int8": "refused: RuntimeError: no such convolution",
        "late": "not run: the part's time was spent",
        "long": "not run: it takes about 100 s, 4 were left",
    }
    assert [line.split(": ")[1] for line in failures("trials", part)] == ["broken", "ours", "far"]


def test_ncus_table_is_read():
    """As ncu printed it on an H200, but for the second kernel's figures."""
    columns = '"ID","Process ID","Process Name","Kernel Name","Device","Metric Name","Metric Unit","Metric Value"'
    memory, busy = "dram__throughput.avg.pct_of_peak_sustained_elapsed", "sm__throughput.avg.pct_of_peak_sustained_elapsed"
    lines = ["==PROF== Connected to process 1165", columns]
    for number, (kind, figures) in enumerate({"float": ("0.07", "81.52"), "__half": ("0.05", "79.1")}.items()):
        kernel = f'"{number}","1165","pa_program","void unnamed>::persistenceOfAppearance<{kind}>(Problem, const T1 *, T1 *)","0"'
        lines += [f'{kernel},"{metric}","%","{value}"' for metric, value in zip((memory, busy), figures, strict=True)]
    assert shares_of("\n".join(lines)) == {
        "fp32": {"memory_percent": 0.07, "sm_percent": 81.52},
        "fp16": {"memory_percent": 0.05, "sm_percent": 79.1},
    }
    assert shares_of("==ERROR== ERR_NVGPUCTRPERM") == {}


def test_numbers_that_are_none_are_null():
    found = plain({"a": [np.float32(1.5), math.inf, np.int64(3)], "b": (float("nan"), "text", True)})
    assert json.dumps(found, allow_nan=False) == '{"a": [1.5, null, 3], "b": [null, "text", true]}'


def test_rates_and_shares():
    assert tera_per_second(2 * 1000**3, 1.0) == 2.0
    parts = {
        "peak": {"rows": [{"arithmetic": "bf16", "tflop_per_s": 400.0}], "facts": {}},
        "network": {"rows": [], "facts": {"macs_per_clip": 35.2e9}},
        "eager": {"rows": [{"precision": "bf16", "clips_per_s": 1000.0}, {"precision": "fp32", "clips_per_s": 100.0}, {}], "facts": {}},
        "decode": {"rows": [{"loader": "gpu", "clips_per_s": 900.0}], "facts": {}},
    }
    add_shares(parts)
    half, full, nothing = parts["eager"]["rows"]
    assert half["tflop_per_s"] == pytest.approx(70.4)
    assert half["share_of_peak"] == pytest.approx(0.176)
    assert full["tflop_per_s"] == pytest.approx(7.04)
    assert "share_of_peak" not in full
    assert nothing == {}
    assert parts["decode"]["rows"] == [{"loader": "gpu", "clips_per_s": 900.0}]


def test_a_row_is_counted_by_its_own_network():
    """Rows of other networks were once given PAN-Lite's arithmetic; twice, since shares are added after every part."""
    own = {"precision": "bf16", "clips_per_s": 1000.0, "macs_per_clip": 10e9}
    measured = {"precision": "bf16", "clips_per_s": 1000.0, "tflop_per_s": 12.5}
    parts = {
        "peak": {"rows": [{"arithmetic": "bf16", "tflop_per_s": 400.0}], "facts": {}},
        "network": {"rows": [], "facts": {"macs_per_clip": 35.2e9}},
        "models": {"rows": [own, measured], "facts": {}},
    }
    add_shares(parts)
    add_shares(parts)
    assert (own["tflop_per_s"], own["share_of_peak"]) == (20.0, 0.05)
    assert (measured["tflop_per_s"], measured["share_of_peak"]) == (12.5, 0.0312)
    del parts["network"]
    other = {"precision": "bf16", "clips_per_s": 1000.0, "macs_per_clip": 10e9}
    parts["models"]["rows"] = [other]
    add_shares(parts)
    assert other["tflop_per_s"] == 20.0


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX PRO 6000 Blackwell", "rtx-pro-6000-blackwell"),
        ("Tesla T4", "t4"),
        (None, "none"),
        ("NVIDIA Graphics Device", "unknown"),
    ],
)
def test_slug(card, name):
    assert gpu.slug(card) == name


def test_only_a_gpu_writes_into_the_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    full = {"quick": False, "partial": False, "device": "cuda"}
    assert gpu.place(Path("bench/results"), card="NVIDIA H100 PCIe", **full) == Path("bench/results/gpu-h100.json")
    assert gpu.place(Path("bench/results"), card=None, **full) == Path("runs/bench/gpu-none.json")
    assert gpu.place(Path("bench/results/mine.json"), card=None, **full) == Path("runs/bench/gpu-none.json")
    assert gpu.place(Path(gpu.__file__).parents[1] / "results", card=None, **full) == Path("runs/bench/gpu-none.json")
    assert gpu.place(Path("bench/results"), card=None, quick=True, partial=False, device="cpu") == Path(
        "runs/bench/gpu-rehearsal-quick.json"
    )
    assert gpu.place(Path("out"), card="NVIDIA L4", quick=True, partial=True, device="cuda") == Path("out/gpu-l4-quick-parts.json")
    assert gpu.place(Path("here.json"), card=None, **full) == Path("here.json")


def test_every_part_is_a_function():
    """The names are text, so nothing else finds out before a GPU is there."""
    import importlib

    for part in PARTS.values():
        module, _, function = part.function.partition(":")
        assert callable(getattr(importlib.import_module(f"flowless.bench.gpu.{module}"), function))
        assert part.quick_seconds <= part.seconds


def test_without_a_gpu_every_part_says_so(tmp_path, monkeypatch, capsys):
    """What `flowless bench gpu` does on this machine; where there is a GPU, it is hidden."""
    from flowless.cli import main

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "gpu", "--out", "bench/results"]) == 0
    assert not Path("bench").exists()
    document = json.loads(Path("runs/bench/gpu-none.json").read_text(encoding="utf-8"))
    assert document["benchmark"] == "gpu"
    assert document["gpu"] is None
    assert document["failed"] == []
    assert document["environment"]["versions"]["torch"]
    assert list(document["parts"]) == list(PARTS)
    for name, part in document["parts"].items():
        assert part["status"] == "ran" if name == "machine" else part["status"].startswith("not here: no CUDA GPU"), name
    assert f"no GPU: 1 parts ran, {len(PARTS) - 1} not here, 0 not run" in capsys.readouterr().err


def test_a_part_that_this_machine_lacks_something_for_is_not_begun(tmp_path, monkeypatch):
    """Its process would first load PyTorch, to say so."""
    monkeypatch.setattr(gpu, "run_part", lambda *_, **__: pytest.fail("it was begun"))
    monkeypatch.setitem(PARTS, "peak", replace(PARTS["peak"], library="a_library_that_nobody_has"))
    for settings, name, status in (
        (Settings(work=str(tmp_path)), "peak", "not here: a_library_that_nobody_has is not installed"),
        (Settings(work=str(tmp_path), device="cpu"), "kernels", "not here: kernels compiled for a GPU have no rehearsal on the CPU"),
    ):
        assert gpu._step(name, Work(settings), 60.0, end=math.inf, scratch=tmp_path) == gpu.unrun(status)
    monkeypatch.setitem(sys.modules, "av", None)
    lacking = {name for name, part in PARTS.items() if part.missing(Settings()) == "av is not installed"}
    assert lacking == {"videos", "decode", "files"}


def test_nothing_heavy_is_imported_before_a_part_needs_it():
    code = "import sys, flowless.bench.gpu.command, flowless.bench.gpu.subprocess_runner; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"torch", "rich", "tyro", "av", "timm", "onnx", "polygraphy"}


def test_the_gpu_is_told_or_why_there_is_none():
    import torch

    if torch.cuda.is_available():
        assert gpu_facts()["name"]
        return
    with pytest.raises(NotHere, match=r"no CUDA GPU that PyTorch can use \(PyTorch "):
        gpu_facts()


def test_reference_clips_get_scores_of_their_own(tmp_path):
    """What the comparison rests on: rounding to half precision is far smaller than what tells clips apart."""
    import torch

    from flowless.bench.gpu.network import load_network, load_reference, network

    ledger = Ledger(path=tmp_path / "network.json", settings=Settings(device="cpu", work=str(tmp_path)))
    with pytest.raises(NotHere, match="the part network did not make the network"):
        load_reference(ledger.settings)
    network(ledger)
    reference, model = load_reference(ledger.settings), load_network(ledger.settings)
    with torch.inference_mode():
        again = model(torch.from_numpy(reference.clips)).numpy()
        backwards = model(torch.from_numpy(reference.clips[:, ::-1, ::-1].copy())).numpy()
    np.testing.assert_allclose(again, reference.scores, atol=1e-4)
    from flowless.bench.gpu.network import compare_scores

    for precision in ("fp32", "bf16", "fp16", "int8"):
        assert compare_scores(again, reference.scores, precision=precision, device="CPU")["passed"]
        assert not compare_scores(again[:, ::-1], reference.scores, precision=precision, device="CPU")["passed"]
    assert not compare_scores(backwards, reference.scores, precision="fp16", device="CPU")["passed"]
    unjudged = compare_scores(again, reference.scores, precision="tf32", device="GPU")
    assert unjudged["passed"] is None
    assert unjudged["unjudged"] == "no tolerance is stated for tf32"
    assert ledger.facts["macs_per_clip"] > 1e6
    assert len(reference.tiled(8).clips) == 8
    assert len(reference.tiled(1).clips) == 6


def test_a_frame_says_its_number():
    from flowless.bench.gpu.decode import numbered_frames, numbers_of

    frames = np.stack(list(numbered_frames(70)))
    assert numbers_of(frames) == list(range(70))
    assert numbers_of(np.full((1, *frames.shape[1:]), 128, np.uint8)) == [-1]
    assert numbers_of(frames[[3, 9]] // 2 + 60) == [-1, -1]

"""The GPU suite without a GPU: its document, what each part says, that a part costs no other, and a rehearsal on the CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flowless.bench.gpu import command as gpu
from flowless.bench.gpu.guard import failures, run_part
from flowless.bench.gpu.ledger import Ledger, NotHere, Settings, plain
from flowless.bench.gpu.machine import gpu_facts, tera_per_second
from flowless.bench.gpu.parts import PARTS, chosen_parts
from flowless.bench.gpu.shares import add_shares
from flowless.bench.gpu.work import Work
from flowless.errors import FlowlessError

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
    return lambda name, seconds=30.0: run_part(name, f"small_parts:{name}", settings=Settings(work=str(work)), seconds=seconds)


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


def test_parts_bring_what_they_use():
    assert list(chosen_parts(None)) == list(PARTS)
    assert list(chosen_parts("onnxruntime, peak")) == ["machine", "network", "graphs", "onnxruntime", "peak"]
    assert list(chosen_parts("peak,machine,graphs")) == ["machine", "peak", "network", "graphs"]
    for words in ("peak,speed", ",", "speed=3"):
        with pytest.raises(FlowlessError, match="is no part; there are machine, peak"):
            chosen_parts(words)


def test_parts_have_limits_of_their_own():
    found = chosen_parts("onnxruntime, peak=40, graphs=7.5")
    assert found["peak"] == 40.0
    assert found["graphs"] == 7.5
    assert found["network"] == PARTS["network"].seconds
    assert chosen_parts("network", quick=True)["network"] == PARTS["network"].quick_seconds
    for limit in ("0", "-3", "soon", "nan", "inf"):
        with pytest.raises(FlowlessError, match="must be a number of seconds above 0, such as peak=60"):
            chosen_parts(f"peak={limit}")


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


@pytest.fixture
def said(monkeypatch):
    """Parts that take no time: what each was given, and what it answers."""
    given: dict[str, float] = {}
    answers: dict[str, dict] = {"machine": {"facts": {"gpu": {"name": "NVIDIA L4"}}}}

    def other(name, function, *, settings, seconds, scratch, held=()):
        given[name] = seconds
        return {**gpu.unrun("ran"), **answers.get(name, {})}

    monkeypatch.setattr(gpu, "run_part", other)
    return given, answers


def test_a_check_that_fails_is_exit_code_3(tmp_path, said, capsys):
    said[1]["peak"] = {"checks": [{"check": "maps", "passed": False}]}
    assert gpu.main(["--parts", "peak", "--out", str(tmp_path)]) == 3
    assert "FAILED peak: maps: not passed" in capsys.readouterr().err
    assert json.loads((tmp_path / "gpu-l4-parts.json").read_text())["failed"] == ["peak: maps: not passed"]
    assert gpu.main(["--parts", "machine", "--out", str(tmp_path)]) == 0


def test_a_deadline_cuts_limits_and_leaves_out(tmp_path, said, monkeypatch):
    given, answers = said
    out = tmp_path / "out.json"
    now = time.monotonic()
    answers["peak"] = {"status": "failed: stopped after 63 s, at bf16"}
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now + 30.0 * len(given))  # each part takes half a minute
    words = ["--parts", "peak=70,persistence=10,shapes=10,models", "--out", str(out)]
    assert gpu.main([*words, "--until", "93"]) == 0
    assert given == {"machine": 60.0, "peak": 63.0, "persistence": 10.0}
    parts = json.loads(out.read_text())["parts"]
    assert parts["peak"]["status"] == "not run to its end: stopped after 63 s, at bf16"
    assert [parts[name]["status"] for name in ("shapes", "models")] == ["not run: no time left"] * 2
    # With all of its own time it is a fault of the part.
    assert gpu.main(words) == 3
    assert given["peak"] == 70.0


def test_a_deadline_that_is_none(capsys):
    for text in ("0", "-1", "soon"):
        with pytest.raises(SystemExit) as ended:
            gpu.main(["--until", text])
        assert ended.value.code == 2
    assert "--until" in capsys.readouterr().err


@pytest.fixture
def work(tmp_path):
    return Work(Settings(device="cpu", work=str(tmp_path)))


def test_a_work_folder_keeps_what_is_made(tmp_path, monkeypatch, capsys):
    """Through the real part: made once, and again with another setting or another version of the code."""
    out, words = tmp_path / "out.json", ["--device", "cpu", "--parts", "videos", "--work", str(tmp_path / "work")]

    def kept(*more: str) -> bool:
        assert gpu.main([*words, *more, "--out", str(out)]) == 0
        part = json.loads(out.read_text())["parts"]["videos"]
        assert part["status"] == "ran"
        assert part["rows"][0]["videos"] == 1
        return part.get("kept", False)

    assert not kept()
    assert kept()
    assert not kept("--quick")
    assert not kept()  # the videos are those of --quick now
    monkeypatch.setattr("flowless.bench.gpu.work.code_hash", lambda: "another")
    assert not kept()
    assert kept()
    assert "videos: ran (" in capsys.readouterr().err


def test_what_is_not_whole_is_not_kept(work):
    whole = {**gpu.unrun("ran"), "left_out": {"bf16": "not here: modelopt is not installed"}}
    for part in (
        {**whole, "status": "failed: stopped after 3 s"},
        {**whole, "errors": {"int8": "RuntimeError: no"}},
        {**whole, "left_out": {"int8": "not run: the part's time was spent"}},
    ):
        work.keep("graphs", part)
        assert work.kept("graphs") is None
    work.keep("graphs", whole)
    assert work.kept("graphs") == whole
    assert Work(Settings(device="cuda", work=work.settings.work)).kept("graphs") is None
    (work.settings.folder / "graphs.made.json").write_text("{")
    assert work.kept("graphs") is None


def test_a_part_is_made_by_one_command_at_a_time(work):
    """The process that makes it holds the lock too: it may outlive its command."""
    with work.turn("network", seconds=1) as lock:
        assert lock is not None
        with work.turn("network", seconds=0.3) as second:
            assert second is None
        with work.turn("graphs", seconds=0.3) as other:
            assert other is not None
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with work.turn("network", seconds=0.3) as second:
        assert second is None
    child.communicate(b"\n")
    with work.turn("network", seconds=10) as second:
        assert second is not None


def test_a_command_waits_for_what_another_makes(work, said, tmp_path):
    given, _ = said
    made = {**gpu.unrun("ran"), "facts": {"macs_per_clip": 1}}
    with ThreadPoolExecutor(1) as pool:
        with work.turn("network", seconds=1):
            asked = [*("--device", "cpu", "--work", work.settings.work), *("--parts", "network=20", "--out", str(tmp_path / "out.json"))]
            done = pool.submit(gpu.main, asked)
            time.sleep(1)
            assert not done.done()
            work.keep("network", made)
        assert done.result(timeout=20) == 0
    part = json.loads((tmp_path / "out.json").read_text())["parts"]["network"]
    assert part["kept"]
    assert part["waited_seconds"] > 0.5
    assert set(given) == {"machine"}
    with work.turn("graphs", seconds=1):
        gpu.main([*asked[:-3], "graphs=1", *asked[-2:]])
    part = json.loads((tmp_path / "out.json").read_text())["parts"]["graphs"]
    assert part["status"].startswith("not run: another command was making it for 1")


def test_nothing_heavy_is_imported_before_a_part_needs_it():
    code = "import sys, flowless.bench.gpu.command, flowless.bench.gpu.guard; print(*sys.modules)"
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


@pytest.mark.slow
def test_rehearsal_of_the_op_and_the_decoder(tmp_path):
    from flowless.bench.gpu.decode import decode
    from flowless.bench.gpu.machine import peak
    from flowless.bench.gpu.persistence import persistence

    pytest.importorskip("nvidia.dali")
    ledgers = {}
    for part in (peak, persistence, decode):
        ledger = ledgers[part.__name__] = Ledger(
            path=tmp_path / f"{part.__name__}.json", settings=Settings(device="cpu", work=str(tmp_path))
        )
        part(ledger)
        assert not ledger.errors
        assert not [check for check in ledger.checks if not check["passed"]]
    assert {row["arithmetic"] for row in ledgers["peak"].rows} == {"bf16", "fp16", "int8", "tf32", "fp32"}
    rows = ledgers["persistence"].rows
    assert {(row["body"], row["arithmetic"]) for row in rows} == {
        (body, arithmetic) for body in ("plain", "torch") for arithmetic in ("float32", "float16", "uint8")
    }
    assert len(ledgers["persistence"].checks) == 11
    assert {row["decoder"] for row in ledgers["decode"].rows} == {"pyav", "dali"}
    assert "vp9: every frame" in {check["check"] for check in ledgers["decode"].checks}


@pytest.mark.slow
def test_rehearsal_of_the_engines(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    assert gpu.main(["--device", "cpu", "--parts", "peak,eager,onnxruntime", "--out", "rehearsal.json"]) == 0
    parts = json.loads(Path("rehearsal.json").read_text(encoding="utf-8"))["parts"]
    seen = {(row["name"], row["precision"], row["batch"]) for part in ("eager", "onnxruntime") for row in parts[part]["rows"]}
    assert seen >= {("pytorch eager", precision, batch) for precision in ("fp32", "bf16", "fp16") for batch in (1, 2)}
    assert seen >= {("onnxruntime", precision, batch) for precision in ("fp32", "fp16", "int8") for batch in (1, 2)}
    for row in parts["eager"]["rows"]:
        rate = 2 * parts["network"]["facts"]["macs_per_clip"] * row["clips_per_s"] / 1e12
        assert row["tflop_per_s"] == pytest.approx(rate, rel=1e-2, abs=1e-4)
        assert row["share_of_peak"] > 0

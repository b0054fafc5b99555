"""How `flowless bench gpu` runs its parts: which, for how long, until when, and what its work folder keeps."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowless.bench.gpu import command as gpu
from flowless.bench.gpu.ledger import Settings
from flowless.bench.gpu.parts import PARTS, chosen_parts
from flowless.bench.gpu.work import Work
from flowless.errors import FlowlessError


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


def test_a_work_folder_keeps_what_is_made(work, said, tmp_path, monkeypatch, capsys):
    """Made once, and again with another setting or another version of the code. (The real parts: test_gpu_rehearsal.py.)"""
    given, _ = said
    out, words = tmp_path / "out.json", ["--device", "cpu", "--parts", "videos", "--work", work.settings.work]

    def kept(*more: str) -> bool:
        given.clear()
        assert gpu.main([*words, *more, "--out", str(out)]) == 0
        part = json.loads(out.read_text())["parts"]["videos"]
        assert part["status"] == "ran"
        assert part.get("kept", False) == ("videos" not in given)
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

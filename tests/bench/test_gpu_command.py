"""How `flowless bench gpu` runs its parts: which, for how long, until when, and where its file goes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from flowless.bench.gpu import command as gpu
from flowless.bench.gpu.parts import PARTS, chosen_parts
from flowless.bench.gpu.results import Settings, empty
from flowless.errors import FlowlessError


def test_parts_bring_what_they_use():
    assert list(chosen_parts(None)) == list(PARTS)
    assert list(chosen_parts("onnxruntime, peak")) == ["machine", "network", "graphs", "onnxruntime", "peak"]
    assert list(chosen_parts("peak,machine,graphs")) == ["machine", "peak", "network", "graphs"]
    for text in ("peak,speed", ",", "speed=3"):
        with pytest.raises(FlowlessError, match="is no part; there are machine, peak"):
            chosen_parts(text)


def test_parts_have_limits():
    found = chosen_parts("onnxruntime, peak=40, graphs=7.5")
    assert (found["peak"], found["graphs"], found["network"]) == (40.0, 7.5, PARTS["network"].seconds)
    for limit in ("0", "-3", "soon", "nan", "inf"):
        with pytest.raises(FlowlessError, match="must be a number of seconds above 0, such as peak=60"):
            chosen_parts(f"peak={limit}")


@pytest.fixture
def parts(monkeypatch):
    """Parts that take no time: the seconds that each was given, and what it returns."""
    given: dict[str, float] = {}
    returned: dict[str, dict] = {"machine": {"facts": {"gpu": "NVIDIA L4"}}}

    def run_part(name, *, settings, seconds, scratch):
        given[name] = seconds
        return {**empty("ran"), **returned.get(name, {})}

    monkeypatch.setattr(gpu, "run_part", run_part)
    return given, returned


def test_a_check_that_fails_is_exit_code_3(tmp_path, parts, capsys):
    parts[1]["peak"] = {"checks": [{"check": "maps", "passed": False}]}
    assert gpu.main(["--parts", "peak", "--out", str(tmp_path)]) == 3
    assert "FAILED peak: maps: not passed" in capsys.readouterr().err
    document = json.loads((tmp_path / "gpu-l4-parts.json").read_text())
    assert (document["failed"], document["gpu"], document["benchmark"]) == (["peak: maps: not passed"], "NVIDIA L4", "gpu")
    assert document["environment"]["versions"]["torch"]
    assert gpu.main(["--parts", "machine", "--out", str(tmp_path)]) == 0


def test_a_crash_of_the_first_part_costs_no_other(tmp_path, parts):
    given, returned = parts
    returned["machine"] = {"status": "failed: ended by SIGSEGV"}
    assert gpu.main(["--parts", "peak", "--out", str(tmp_path / "out.json")]) == 3
    assert list(given) == ["machine", "peak"]
    assert json.loads((tmp_path / "out.json").read_text())["failed"] == ["machine: failed: ended by SIGSEGV"]


def test_a_deadline_cuts_limits_and_leaves_out(tmp_path, parts, monkeypatch):
    given, returned = parts
    out = tmp_path / "out.json"
    now = time.monotonic()
    returned["peak"] = {"status": "failed: stopped after 63 s, at bf16"}
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now + 30.0 * len(given))  # each part takes half a minute
    args = ["--parts", "peak=70,persistence=10,shapes=10,models", "--out", str(out)]
    assert gpu.main([*args, "--until", "93"]) == 0
    assert given == {"machine": 60.0, "peak": 63.0, "persistence": 10.0}
    found = json.loads(out.read_text())["parts"]
    assert found["peak"]["status"] == "not run to its end: stopped after 63 s, at bf16"
    assert [found[name]["status"] for name in ("shapes", "models")] == ["not run: no time left"] * 2
    # With all of its own time it is a failure of the part.
    assert gpu.main(args) == 3
    assert given["peak"] == 70.0


def test_a_deadline_that_is_refused(capsys):
    for text in ("0", "-1", "soon", "nan"):
        with pytest.raises(SystemExit) as ended:
            gpu.main(["--until", text])
        assert ended.value.code == 2
    assert "--until" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "gpu-h100"),
        ("NVIDIA A100-SXM4-40GB", "gpu-a100"),
        ("NVIDIA GeForce RTX 4090", "gpu-rtx-4090"),
        ("NVIDIA RTX PRO 6000 Blackwell", "gpu-rtx-pro-6000-blackwell"),
        ("Tesla T4", "gpu-t4"),
        (None, "gpu-none"),
    ],
)
def test_a_file_is_named_after_the_card(card, name):
    assert gpu.place(Path("out"), card=card, settings=Settings(folder=Path()), partial=False) == Path(f"out/{name}.json")


def test_only_a_gpu_writes_into_the_results():
    full, rehearsal = Settings(folder=Path()), Settings(device="cpu", quick=True, folder=Path())
    assert gpu.place(gpu.RESULTS, card="NVIDIA H100 PCIe", settings=full, partial=False) == gpu.RESULTS / "gpu-h100.json"
    assert gpu.place(gpu.RESULTS, card=None, settings=full, partial=False) == Path("runs/bench/gpu-none.json")
    assert gpu.place(gpu.RESULTS / "mine.json", card=None, settings=full, partial=False) == Path("runs/bench/gpu-none.json")
    assert gpu.place(gpu.RESULTS, card=None, settings=rehearsal, partial=True) == Path("runs/bench/gpu-rehearsal-quick-parts.json")
    assert gpu.place(Path("here.json"), card=None, settings=full, partial=False) == Path("here.json")
    assert gpu.RESULTS.is_dir()


def test_without_a_gpu_every_part_says_so(tmp_path, monkeypatch, capsys):
    """Where there is a GPU, it is hidden."""
    from flowless.cli import main

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["bench", "gpu", "--out", str(tmp_path / "gpu.json"), "--json"]) == 0
    document = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    said = capsys.readouterr()
    assert json.loads(said.out) == document
    assert (document["gpu"], document["failed"], list(document["parts"])) == (None, [], list(PARTS))
    assert all(part["status"].startswith("not here: no CUDA GPU that PyTorch can use") for part in document["parts"].values())
    assert f"no GPU: 0 of {len(PARTS)} parts ran" in said.err

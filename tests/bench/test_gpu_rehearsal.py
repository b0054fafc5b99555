"""The GPU suite's parts on the CPU: what fails here would fail on a GPU."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from flowless.bench.gpu import subprocess_runner
from flowless.bench.gpu.parts import PARTS
from flowless.bench.gpu.results import Settings

#: torch.compile is a C++ compiler's minutes.
REHEARSED = [name for name in PARTS if name != "compiled"]


def run_here(name: str, *, settings: Settings, seconds: float, scratch: Path) -> dict[str, Any]:
    """Run a part in this process, which has imported PyTorch already; test_gpu_bench.py runs parts in processes of their own."""
    found = scratch / f"{name}.json"
    given = json.dumps(asdict(settings), default=str)
    subprocess_runner.main([name, f"flowless.bench.gpu.{PARTS[name].function}", given, str(found), str(seconds)])
    document = json.loads(found.read_text(encoding="utf-8"))
    document.pop("at", None)
    return document | {"seconds": 0.0}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("nvidia.dali")
    from flowless.bench.gpu import command
    from flowless.cli import main

    monkeypatch.setattr(command, "run_part", run_here)
    monkeypatch.setenv("FLOWLESS_CACHE", str(tmp_path / "cache"))

    args = ["bench", "gpu", "--device", "cpu", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    assert main([*args, "--parts", ",".join(REHEARSED)]) == 0
    parts = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["parts"]
    away = {name for name, part in parts.items() if part["status"].startswith("not here")}
    assert away >= {"kernels", "sanitizer"}
    assert away <= {"kernels", "sanitizer", "tensorrt", "plugin", "tensorrt-rtx"}
    for name in set(REHEARSED) - away:
        assert parts[name]["status"] == "ran", name
        assert not [why for why in parts[name]["left_out"].values() if why.startswith("not run")], name
    rows = {name: part["rows"] for name, part in parts.items()}
    checks = {name: {check["check"]: check["passed"] for check in part["checks"]} for name, part in parts.items()}
    assert {row["arithmetic"] for row in rows["peak"]} == {"bf16", "fp16", "int8", "tf32", "fp32"}
    assert len(checks["persistence"]) == 11
    # What a type cannot hold counts as no error: no value may be so small that all its error is that.
    assert all(check["error"] > 0 for check in parts["persistence"]["checks"])
    assert {row["form"] for row in rows["pa-forms"]} >= {"uint8, colours last", "plain by pixels, fp32"}
    assert checks["decode"] == {f"vp9: {count} frames by {decoder}": True for decoder in ("pyav", "dali") for count in (40, 9)}
    assert {row["decoder"] for row in rows["files"]} == {"pyav", "dali"}
    rates, goal = rows["end-to-end"]
    assert min(rates[f"{way}_videos_per_s"] for way in ("decoder", "engine", "predict_many")) > 0
    assert (goal["wanted"], goal["measured"]) == (">= 0.9", None), "a rehearsal measures nothing"
    seen = {(row["name"], row["precision"], row["batch"]) for part in ("eager", "onnxruntime") for row in rows[part]}
    assert seen >= {("pytorch eager", precision, batch) for precision in ("fp32", "bf16", "fp16") for batch in (1, 2)}
    assert seen >= {("onnxruntime", precision, batch) for precision in ("fp32", "fp16", "int8") for batch in (1, 2)}
    assert all(checks["eager"].values())
    assert all(checks["onnxruntime"].values())
    macs = parts["network"]["facts"]["macs_per_clip"]
    for row in (*rows["eager"], *rows["models"]):
        assert row["tflop_per_s"] == pytest.approx(2 * row.get("macs_per_clip", macs) * row["clips_per_s"] / 1e12, rel=1e-2, abs=1e-4)
        assert row["share_of_peak"] > 0
    assert {row["what"] for row in rows["train-step"]} == {"bf16 autocast", "bf16 autocast, PA by torch"}
    assert len(rows["shapes"]) == 1

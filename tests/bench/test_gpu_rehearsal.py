"""The GPU suite's parts on the CPU, each through its own process: what fails here would fail on a GPU."""

from __future__ import annotations

import json

import pytest

from flowless.bench.gpu import command as gpu
from flowless.bench.gpu.parts import PARTS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rehearsal(tmp_path):
    """Every part on the CPU but `compiled`, which is a C++ compiler's minutes: what fails here is a fault of ours."""
    pytest.importorskip("nvidia.dali")
    names = [name for name in PARTS if name != "compiled"]
    assert gpu.main(["--device", "cpu", "--work", str(tmp_path / "work"), "--parts", ",".join(names), "--out", str(tmp_path)]) == 0
    parts = json.loads((tmp_path / "gpu-rehearsal-parts.json").read_text(encoding="utf-8"))["parts"]
    assert list(parts) == names
    away = {name for name, part in parts.items() if part["status"].startswith("not here")}
    assert away >= {"kernels", "sanitizer", "tensorrt", "plugin", "quick-plugin"}
    assert not away & set(names[: names.index("tensorrt")]) - {"kernels", "sanitizer"}
    for name in set(names) - away:
        assert parts[name]["status"] == "ran", name
        assert not [why for why in parts[name]["left_out"].values() if why.startswith("not run")], name
    rows = {name: part["rows"] for name, part in parts.items()}
    assert {row["arithmetic"] for row in rows["peak"]} == {"bf16", "fp16", "int8", "tf32", "fp32"}
    assert {(row["body"], row["arithmetic"]) for row in rows["persistence"]} == {
        (body, arithmetic) for body in ("plain", "torch") for arithmetic in ("float32", "float16", "uint8")
    }
    assert len(parts["persistence"]["checks"]) == 11
    assert {row["decoder"] for row in rows["decode"]} == {row["decoder"] for row in rows["files"]} == {"pyav", "dali"}
    assert "vp9: every frame" in {check["check"] for check in parts["decode"]["checks"]}
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
    assert {row["form"] for row in rows["pa-forms"]} >= {"uint8, colours last", "plain by pixels, fp32", "torch.compile by phases, fp32"}
    assert len(rows["shapes"]) == 1
    # Another command in the same work folder makes nothing again.
    assert gpu.main(["--device", "cpu", "--work", str(tmp_path / "work"), "--parts", "eager,graphs", "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "gpu-rehearsal-parts.json").read_text(encoding="utf-8"))["parts"]
    assert {name for name, part in again.items() if part.get("kept")} == {"network", "graphs"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_engines_need_no_pyav(tmp_path, monkeypatch):
    """On a machine that is lent PyAV may be missing: INT8 is calibrated and measured all the same; the videos say what they lack."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'av':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert gpu.main(["--device", "cpu", "--parts", "onnxruntime,shapes,files", "--out", str(tmp_path / "out.json")]) == 0
    parts = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["parts"]
    assert {row["precision"] for row in parts["onnxruntime"]["rows"]} == {"fp32", "fp16", "int8"}
    assert len(parts["shapes"]["rows"]) == 1
    assert parts["videos"]["status"] == "not here: av is not installed"
    assert parts["files"]["status"].startswith("not here: ")

"""No number in the README is typed by hand."""

from __future__ import annotations

import json

import pytest

from flowless.bench.figures import BEGIN, END, ROOT, _precisions, render, replaced
from flowless.errors import FlowlessError


def test_the_readme_says_what_the_results_say() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replaced(readme, render(ROOT / "bench" / "results")) == readme, "run: python bench/figures.py"


def test_results_name_their_environment_and_no_place() -> None:
    for path in (ROOT / "bench" / "results").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert {"processor", "cores", "versions"} <= set(json.loads(text)["environment"])
        assert "/home/" not in text
        assert "/tmp/" not in text


def test_lower_precisions_are_told_where_they_were_measured() -> None:
    fp32 = {"name": "openvino fp32", "p50_ms": 400.0}
    lower = [{"name": "openvino bf16", "p50_ms": 180.0, "snr_db": 39.4}, {"name": "openvino int8", "p50_ms": 120.0, "snr_db": 27.2}]
    refused = {"name": "openvino fp16", "status": "not kept: runs in bf16"}
    builds = [
        {"target": "tensorrt-rtx", "precision": "int8", "megabytes": 33.4, "build_s": 2.14},
        {"target": "openvino", "precision": "int8", "megabytes": 26.0, "build_s": 9.0},
    ]
    assert _precisions({"engines": [fp32]}, None) == []
    found = _precisions({"engines": [fp32, *lower, refused], "builds": builds}, 1.61)
    assert found == [
        "- INT8 on OpenVINO: 1.50× the speed of BF16; its differences from PyTorch lie 27 dB below the scores' spread (bf16: 39 dB).",
        "- TensorRT-RTX engines, built here without a GPU and not run: int8 33 MB in 2.1 s.",
        "- From the checkpoint to a verified INT8 bundle, cold: 1.6 minutes.",
    ]


def test_figures_are_replaced_between_their_lines() -> None:
    assert replaced(f"a\n{BEGIN}old\n{END}b\n", "new\n") == f"a\n{BEGIN}new\n{END}b\n"
    with pytest.raises(FlowlessError, match="must both be there"):
        replaced("no lines", "new")

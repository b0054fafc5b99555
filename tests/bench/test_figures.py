"""No number in the README is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from readme_figures import BEGIN, END, PAGES, ROOT, _decoding, _evidence, _gpus, _motion, _precisions, page_with_figures, replaced

from flowless.errors import FlowlessError


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_the_results_say(name: str) -> None:
    assert page_with_figures(name) == (ROOT / name).read_text(encoding="utf-8"), "run: python scripts/readme_figures.py"


def test_results_name_their_environment_and_no_place() -> None:
    for path in (ROOT / "bench" / "results").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert {"processor", "cores", "versions"} <= set(json.loads(text)["environment"])
        assert "/home/" not in text
        assert "/tmp/" not in text


def test_lower_precisions_are_shown_where_they_were_measured() -> None:
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
        "- INT8 on OpenVINO: 1.50× the speed of BF16. Its scores differ from PyTorch's by 4.4 % of their standard deviation over clips"
        " (root mean square; BF16: 1.1 %).",
        "- TensorRT-RTX engines, built here without a GPU and not run: int8 33 MB in 2.1 s.",
        "- From the checkpoint to a verified INT8 bundle, cold: 1.6 minutes.",
    ]


def test_what_readers_decode_is_a_table_where_it_was_measured(tmp_path: Path) -> None:
    assert _decoding(tmp_path / "decode.json") == []
    medians = {"flowless": 1.157, "flowless, known": 1.467, "torchcodec": 1.022}
    document = {
        "environment": {"cores": 2},
        "files": [{"exact": True}, {"exact": True}, {"exact": False}, {"exact": None}],
        "peers": {"torchcodec": {"right": 1, "others": 2, "none": 0}, "FFmpeg's command": {"right": 3, "others": 0, "none": 0}},
        "ratios_of_named": {name: {"median": median, "files": 3} for name, median in medians.items()},
    }
    (tmp_path / "decode.json").write_text(json.dumps(document), encoding="utf-8")
    found = _decoding(tmp_path / "decode.json")
    assert found[0].startswith("2 of 3 files gave exactly")
    assert found[4:] == [
        "| flowless | 2 | 1 | 0 | 1.16 |",
        "| flowless, with an index | 2 | 1 | 0 | 1.47 |",
        "| torchcodec | 1 | 2 | 0 | 1.02 |",
        "",
    ]


def test_motion_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    assert _motion(tmp_path) == []
    rows = [
        {"method": "PA", "engine": "pytorch eager", "frames_per_s": 400.0, "maps_per_s": 333.3, "times_tv_l1": 160.0},
        {"method": "PA", "engine": "openvino bf16", "frames_per_s": 1440.0, "maps_per_s": 1200.0, "times_tv_l1": 576.04},
        {"method": "TV-L1", "engine": "opencv", "frames_per_s": 2.5, "maps_per_s": 2.08, "times_tv_l1": 1.0},
        {"method": "RAFT-small", "engine": "pytorch eager", "status": "not measured"},
    ]
    methods = [
        {"name": "PA", "gmacs": 2.376, "parameters": 1184},
        {"name": "TV-L1", "gmacs": None, "parameters": None},
        {"name": "RAFT-small", "gmacs": 351.6, "parameters": 990162},
    ]
    claim = {"paper": "8196 fps, TV-L1 8 fps", "paper_ratio": 1024.5, "ours": 576.04}
    document = {"settings": {"frames": 48}, "environment": {"cores": 2}, "methods": methods, "rows": rows, "claims": [claim]}
    document["picture"] = {"file": "motion.jpg"}
    (tmp_path / "motion.json").write_text(json.dumps(document), encoding="utf-8")
    found = _motion(tmp_path)
    assert found[4:] == [
        "| PA | openvino bf16 | 1440 | 1200 | 576 | 2.38 | 1 184 |",
        "| TV-L1 | opencv | 2.5 | 2.1 | 1.0 |  |  |",
        "",
        "PAN's paper: 8196 fps, TV-L1 8 fps, 1024×. Here PA is 576× as fast as TV-L1, on the same cores.",
        "",
    ]
    (tmp_path / "motion.jpg").write_bytes(b"x")
    assert _motion(tmp_path)[-2] == "![Each cue beside optical flow, on real gestures](bench/results/motion.jpg)"


def test_a_table_and_its_picture_are_shown_where_they_are_there(tmp_path: Path) -> None:
    path = tmp_path / "real.json"

    def lines_of(document: dict[str, str]) -> list[str]:
        return [document["system"]]

    assert _evidence(path, lines_of, "Opposite actions") == []
    path.write_text('{"system": "tsn"}', encoding="utf-8")
    assert _evidence(path, lines_of, "Opposite actions") == ["tsn", ""]
    path.with_suffix(".svg").write_text("<svg/>", encoding="utf-8")
    assert _evidence(path, lines_of, "Opposite actions") == ["tsn", "", "![Opposite actions](bench/results/real.svg)", ""]


def test_a_gpus_speeds_of_right_scores_alone(tmp_path: Path) -> None:
    assert _gpus(tmp_path) == []

    def row(name: str, batch: int, milliseconds: float, rate: float, **more: object) -> dict[str, object]:
        return {"name": name, "precision": "bf16", "batch": batch, "latency_ms_p50": milliseconds, "clips_per_s": rate, **more}

    checks = [{"check": "onnxruntime bf16, batch 1", "passed": False}, {"check": "x", "passed": None}, {"check": "y", "passed": True}]
    graph = {"how": "CUDA graph"}
    parts = {
        "eager": {"rows": [row("pytorch eager", 1, 9.94, 90), row("pytorch eager", 32, 30, 943.4)], "checks": checks[1:]},
        "models": {"rows": [row("tsn-r50", 1, 1, 800, **graph), row("pan-lite-r50", 1, 1.98, 508, **graph)], "checks": []},
        "onnxruntime": {"rows": [row("onnxruntime", 1, 50.0, 90)], "checks": checks[:1]},
        "pa-forms": {
            "rows": [
                {"form": "uint8, colours last", "maps_per_s": 232657, "demanded": False},
                {"form": "uint8, colours last", "maps_per_s": 77615, "demanded": True},
                {"form": "plain by pixels, fp32", "maps_per_s": 131148},
                {"form": "plugin's CUDA kernel, fp32", "maps_per_s": 301295},
            ],
            "checks": [],
        },
    }
    document = {"gpu": "NVIDIA X", "environment": {"versions": {"torch": "2", "onnxruntime": "1"}}, "parts": parts}
    (tmp_path / "gpu-x.json").write_text(json.dumps(document), encoding="utf-8")
    assert _gpus(tmp_path)[4:] == [
        "| PyTorch eager | bf16 | 9.9 | 943 |",
        "| PyTorch in a CUDA graph | bf16 | 2.0 |  |",
        "",
        "- PA of uint8 frames by the Triton kernel: 233 thousand maps/s, 1.8× the formula in plain PyTorch; by the TensorRT plugin's CUDA"
        " kernel, fp32: 301, 2.3×.",
        "- Of 3 comparisons with a reference, 1 passed and 1 failed; for 1 no tolerance is defined: `bench/results/gpu-x.json`.",
        "",
    ]


def test_figures_are_replaced_between_their_lines() -> None:
    assert replaced(f"a\n{BEGIN}old\n{END}b\n", "new\n") == f"a\n{BEGIN}new\n{END}b\n"
    with pytest.raises(FlowlessError, match="must both be there"):
        replaced("no lines", "new")

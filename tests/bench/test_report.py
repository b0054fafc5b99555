"""The demo's page shows its results, loads nothing from outside, and escapes text."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from flowless.bench.demo.demo_engines import grouped
from flowless.bench.demo.report import Evidence, engine_table, pair_shares, render
from flowless.bench.demo.run_demo import allowed_drop

LABELS = ("left", "right<script>")


@pytest.fixture
def summary() -> dict[str, Any]:
    engine = {"top1": 0.95, "max_abs_diff": 1.5e-5, "clips_per_s": 310.0, "latency_ms_p50": 3.2, "megabytes": 1.25}
    none = dict.fromkeys(("top1", "max_abs_diff", "clips_per_s", "latency_ms_p50", "megabytes"))
    return {
        "accuracy": {"pan-lite": 0.9512, "tsn": 0.123},
        "engines": [
            {"target": "openvino", "precision": "fp32", "status": "verified", **engine},
            {"target": "openvino", "precision": "bf16", "status": "verified", **engine, "top1": 0.94, "latency_ms_p50": 1.6},
            {"target": "openvino", "precision": "fp16", "status": "not kept: runs in <bf16>", **none},
            {"target": "openvino", "precision": "int8", "status": "not kept: no faster", **none, "top1": 0.92, "latency_ms_p50": 9.9},
            *({"target": "tensorrt", "precision": name, "status": "not built: needs its GPU", **none} for name in ("fp32", "int8")),
        ],
        "seconds": {"generate": 10.4, "train": 60.0},
    }


def trials() -> list[dict[str, Any]]:
    snr = {"fp32": 120.0, "bf16": 47.0, "fp16": None, "int8": 31.0}
    return [
        {"target": "openvino", "precision": name, "snr_db": value, "fp32_top1": 0.96, "recommended": name == "bf16"}
        for name, value in snr.items()
    ]


@pytest.fixture
def evidence() -> Evidence:
    rng = np.random.default_rng(0)
    row = {"epoch": 0, "train_loss": 1.0, "val_loss": 1.1, "train_top1": 0.5, "val_top1": 0.4}
    seconds = {"decode": 0.001, "preprocess": 0.002, "engine": 0.003}
    prediction = {"video": "left/1.mp4", "true": "left", "predicted": "left", "score": 0.9, "seconds": seconds}
    return Evidence(
        labels=LABELS,
        counts={"train": 20, "val": 4},
        histories={"pan-lite": [row, {**row, "epoch": 1}], "tsn": [row, {**row, "epoch": 1}]},
        confusions={"pan-lite": np.eye(2, dtype=int) * 2, "tsn": np.ones((2, 2), dtype=int)},
        strips={label: (rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), rng.random((3, 8, 8))) for label in LABELS},
        vap_weights={label: np.full(3, 1 / 3) for label in LABELS},
        timescales=("1", "2a", "2b"),
        predictions={"target": "openvino", "total": 4, "right": 3, "videos_per_s": 100.0, "rows": [prediction]},
        trials=trials(),
        calibration={"method": "max", "videos": 32, "used": ["a"] * 31, "skipped": ["b: damaged"]},
        judged_on=240,
        max_drop=2.5,
        seed=7,
        commands="flowless predict BUNDLE VIDEO",
    )


def test_the_page_holds_the_figures(summary: dict[str, Any], evidence: Evidence) -> None:
    page = render(summary, evidence)
    for text in ("95.1 %", "12.3 %", "2 of 4", "1.5e-05", "needs its GPU", "1:10", "seed 7", "3 of 4 right"):
        assert text in page, text
    for text in ("31 training videos (method max, 1 could not be read)", "240 validation videos falls by no more than 2.5 points"):
        assert text in page, text
    assert page.count("<svg") == 6
    assert page.count("<img") == 2


def test_the_page_is_self_contained_and_escapes(summary: dict[str, Any], evidence: Evidence) -> None:
    page = render(summary, evidence)
    assert "<script>" not in page
    assert "runs in &lt;bf16&gt;" in page
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)([^"']+)""", page)
    assert outside == []


def test_precisions_stand_side_by_side(summary: dict[str, Any], evidence: Evidence) -> None:
    rows = {(row["target"], row["precision"]): row for row in engine_table(summary["engines"], trials())}
    assert list(rows) == [*(("openvino", name) for name in ("fp32", "bf16", "fp16", "int8")), ("tensorrt", "fp32, int8")]
    assert [row["kept"] for row in rows.values()] == [True, True, False, False, False]
    assert [row["recommended"] for row in rows.values()] == [False, True, False, False, False]
    drops = [row["drop"] for row in rows.values()]
    # Of the one that was not kept: below what fp32 reached in the same gate.
    assert drops == [None, pytest.approx(1.0), None, pytest.approx(4.0), None]
    assert [row["unmeasured"] for row in rows.values()] == [False, False, True, False, True]
    page = render(summary, evidence)
    assert page.count('class="best') == 1
    assert "1.60 ms, top-1 94.0 %, recommended" in page
    # Timed at another minute: in the table, not among the bars.
    assert "9.90" in page
    assert "9.90 ms" not in page


def test_only_rows_that_say_the_same_are_joined(summary: dict[str, Any]) -> None:
    rows = summary["engines"]
    assert [row["precision"] for row in grouped(rows)] == ["fp32", "bf16", "fp16", "int8", "fp32, int8"]
    assert len(rows) == 6
    assert rows[-2]["precision"] == "fp32"


def test_one_video_never_decides_over_an_engine() -> None:
    assert allowed_drop(240) == 2.0
    for videos in (12, 48, 100, 240, 480):
        assert allowed_drop(videos) > 100 * 2 / videos
    assert allowed_drop(48) == 6.25


def test_confusions_within_and_between_pairs() -> None:
    # Two pairs, ten videos a class: the first pair is always found, its twins by a coin; half of the second is lost.
    confusion = np.array([[5, 5, 0, 0], [5, 5, 0, 0], [5, 0, 5, 0], [0, 5, 0, 5]])
    assert pair_shares(confusion) == (30 / 40, 20 / 30)

"""The report's page holds what the walk found, refers to nothing outside itself, and escapes what it is told."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from flowless.bench.report import Evidence, _pair_shares, render

LABELS = ("left", "right<script>")


@pytest.fixture
def summary() -> dict[str, Any]:
    engine = {"precision": "fp32", "top1": 0.95, "max_abs_diff": 1.5e-5, "clips_per_s": 310.0, "latency_ms_p50": 3.2, "megabytes": 1.25}
    none = dict.fromkeys(("top1", "max_abs_diff", "clips_per_s", "latency_ms_p50", "megabytes"))
    return {
        "accuracy": {"pan-lite": 0.9512, "tsn": 0.123},
        "engines": [
            {"target": "openvino", "status": "verified", **engine},
            {"target": "tensorrt", "precision": "fp32", "status": "not built: needs its GPU", **none},
        ],
        "seconds": {"generate": 10.4, "train": 60.0},
    }


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
        seed=7,
        commands="flowless predict BUNDLE VIDEO",
    )


def test_the_page_holds_the_figures(summary: dict[str, Any], evidence: Evidence) -> None:
    page = render(summary, evidence)
    for text in ("95.1 %", "12.3 %", "1 of 2", "1.5e-05", "not built: needs its GPU", "1:10", "seed 7", "3 of 4 right"):
        assert text in page, text
    assert page.count("<svg") == 5
    assert page.count("<img") == 2


def test_the_page_is_self_contained_and_escapes(summary: dict[str, Any], evidence: Evidence) -> None:
    page = render(summary, evidence)
    assert "<script>" not in page
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)([^"']+)""", page)
    assert outside == []


def test_twins_are_told_apart_from_pairs() -> None:
    # Two pairs, ten videos a class: the first pair is always found, its twins by a coin; half of the second is lost.
    confusion = np.array([[5, 5, 0, 0], [5, 5, 0, 0], [5, 0, 5, 0], [0, 5, 0, 5]])
    assert _pair_shares(confusion) == (30 / 40, 20 / 30)

"""The demo with few videos, end to end: training, export, engines, predictions, and the report."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import flowless
from flowless.cli import main
from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.targets import TARGETS
from flowless.export.precision.precisions import PRECISIONS

pytestmark = pytest.mark.slow

Run = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert main(["demo", "--quick", "--seed", "3", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def videos(demo: Path) -> list[str]:
    return [str(path) for path in sorted((demo / "videos" / "val").rglob("*.mp4"))[:3]]


def test_summary(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) == {"accuracy", "engines", "seconds"}
    assert set(summary["accuracy"]) == {"pan-lite", "tsn"}
    fields = {"target", "precision", "status", "top1", "max_abs_diff", "clips_per_s", "latency_ms_p50", "megabytes"}
    assert all(set(engine) == fields for engine in summary["engines"])
    found = {(engine["target"], engine["precision"]): engine["status"] for engine in summary["engines"]}
    assert set(found) == set(itertools.product(TARGETS, PRECISIONS))
    ran = {(engine["target"], engine["precision"]): engine for engine in summary["engines"] if engine["status"] == "verified"}
    assert {("openvino", "fp32"), ("onnxruntime", "fp32")} <= set(ran)
    for (_, precision), engine in ran.items():
        # Engines and checkpoint get identical frames; only a few videos may be on the boundary of two classes.
        assert engine["top1"] == pytest.approx(summary["accuracy"]["pan-lite"], abs=0.05 if precision in {"fp32", "bf16"} else 0.1)
        assert engine["max_abs_diff"] < (1e-2 if precision == "fp32" else 3)
        assert engine["latency_ms_p50"] > 0
        assert engine["clips_per_s"] > 0
    for status in found.values():
        # The status of the others gives the reason.
        assert status in {"verified", "built, not run here"} or status.startswith(("not kept: ", "not built: ")), status


def test_report_page(demo: Path) -> None:
    page = (demo / "report.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert page.count("<img") == 12
    assert ("int8 measured its scales on 32 training videos" in page) == (read_manifest(demo / "bundle").calibration is not None)
    assert not [path for path in demo.rglob(".*") if path.is_file()]


def test_the_base_install_predicts_the_same(demo: Path, videos: list[str], run_bare: Run) -> None:
    done = run_bare(["-m", "flowless", "predict", str(demo / "bundle"), *videos, "--json"])
    assert done.returncode == 0, done.stderr
    predictions = json.loads(done.stdout)
    engine = flowless.load(demo / "bundle", "openvino")
    for prediction, video in zip(predictions, videos, strict=True):
        best = engine.predict(video).top[0]
        assert prediction["video"] == video
        assert prediction["target"] == "openvino"
        assert prediction["top"][0]["label"] == best.label
        assert prediction["top"][0]["score"] == pytest.approx(best.score, abs=1e-4)


def test_an_unreadable_video_does_not_stop_the_others(demo: Path, videos: list[str], tmp_path: Path, run_bare: Run) -> None:
    bad = tmp_path / "notes.mp4"
    bad.write_text("not a video")
    done = run_bare(["-m", "flowless", "predict", str(demo / "bundle"), videos[0], str(bad), videos[1], "--json"])
    assert done.returncode == 1
    predictions = json.loads(done.stdout)
    assert [("error" in prediction) for prediction in predictions] == [False, True, False]
    assert "notes.mp4" in predictions[1]["error"]
    assert "Traceback" not in done.stderr

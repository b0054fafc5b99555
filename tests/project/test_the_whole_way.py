"""The whole way, as `make demo` walks it but with few videos: video to checkpoint to bundle to answer, and its page."""

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
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert main(["demo", "--quick", "--seed", "3", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def videos(walked: Path) -> list[str]:
    return [str(path) for path in sorted((walked / "videos" / "val").rglob("*.mp4"))[:3]]


def test_summary_says_what_the_contract_asks(walked: Path) -> None:
    summary = json.loads((walked / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) == {"accuracy", "engines", "seconds"}
    assert set(summary["accuracy"]) == {"pan-lite", "tsn"}
    fields = {"target", "precision", "status", "top1", "max_abs_diff", "clips_per_s", "latency_ms_p50", "megabytes"}
    assert all(set(engine) == fields for engine in summary["engines"])
    found = {(engine["target"], engine["precision"]): engine["status"] for engine in summary["engines"]}
    assert set(found) == set(itertools.product(TARGETS, PRECISIONS))
    ran = {(engine["target"], engine["precision"]): engine for engine in summary["engines"] if engine["status"] == "verified"}
    assert {("openvino", "fp32"), ("onnxruntime", "fp32")} <= set(ran)
    for (_, precision), engine in ran.items():
        # The engines see the very frames that the checkpoint saw: at most a few videos lie on the edge of two classes.
        assert engine["top1"] == pytest.approx(summary["accuracy"]["pan-lite"], abs=0.05 if precision in {"fp32", "bf16"} else 0.1)
        assert engine["max_abs_diff"] < (1e-2 if precision == "fp32" else 3)
        assert engine["latency_ms_p50"] > 0
        assert engine["clips_per_s"] > 0
    for status in found.values():
        # Every other one says what became of it.
        assert status in {"verified", "built, not run here"} or status.startswith(("not kept: ", "not built: ")), status


def test_the_page_is_there_whole(walked: Path) -> None:
    page = (walked / "report.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert page.count("<img") == 12
    assert ("int8 measured its scales on 32 training videos" in page) == (read_manifest(walked / "bundle").calibration is not None)
    assert not [path for path in walked.rglob(".*") if path.is_file()]


def test_the_base_install_gives_the_same_answers(walked: Path, videos: list[str], run_bare: Run) -> None:
    done = run_bare(["-m", "flowless", "predict", str(walked / "bundle"), *videos, "--json"])
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    engine = flowless.load(walked / "bundle", "openvino")
    for answer, video in zip(answers, videos, strict=True):
        best = engine.predict(video).top[0]
        assert answer["video"] == video
        assert answer["target"] == "openvino"
        assert answer["top"][0]["label"] == best.label
        assert answer["top"][0]["score"] == pytest.approx(best.score, abs=1e-4)


def test_a_bad_video_is_told_and_the_others_go_on(walked: Path, videos: list[str], tmp_path: Path, run_bare: Run) -> None:
    bad = tmp_path / "notes.mp4"
    bad.write_text("not a video")
    done = run_bare(["-m", "flowless", "predict", str(walked / "bundle"), videos[0], str(bad), videos[1], "--json"])
    assert done.returncode == 1
    answers = json.loads(done.stdout)
    assert [("error" in answer) for answer in answers] == [False, True, False]
    assert "notes.mp4" in answers[1]["error"]
    assert "Traceback" not in done.stderr

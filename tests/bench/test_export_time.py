"""From checkpoint to verified int8 bundle: the stages add up, and what cannot be verified has no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowless.bench.commands import BENCHMARKS
from flowless.bench.speed import export_time
from flowless.bench.speed.export_time import STAGES, ExportTime, main
from flowless.engines.backends.backend import why_not
from flowless.errors import FlowlessError

SMALL = ["--model", "pan-lite-r18", "--width", "0.25", "--blocks", "1", "--size", "48", "--classes", "3", "--calibration-videos", "4"]


def test_a_model_of_ones_own_needs_videos_of_its_kind() -> None:
    with pytest.raises(FlowlessError, match=r"mine\.safetensors.*--calibrate INDEX"):
        ExportTime(checkpoint=Path("mine.safetensors"))
    with pytest.raises(FlowlessError, match=r"calibration_videos is 0"):
        ExportTime(calibration_videos=0)


def test_the_command_knows_it() -> None:
    assert BENCHMARKS["export"][0] == f"{main.__module__}:{main.__name__}"


@pytest.mark.slow
def test_stages_add_up_to_the_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "export.json"
    main([*SMALL, "--out", str(out), "--json"])
    document = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == document
    stages = {row["stage"]: row["seconds"] for row in document["stages"]}
    assert list(stages) == list(STAGES)
    assert all(seconds >= 0 for seconds in stages.values())
    assert sum(stages.values()) == pytest.approx(60 * document["minutes"], abs=0.1)
    assert document["engine"]["status"] == "verified"
    assert document["engine"]["snr_db"] > 16
    assert document["settings"]["calibration_videos"] == 4
    assert document["settings"]["weights"] == "random"
    assert document["int8_gates_seconds"] > 0
    (goal,) = document["goals"]
    assert goal["wanted"] == "<= 2"
    assert goal["measured"] == pytest.approx(document["minutes"], abs=0.01)
    assert {"processor", "cores", "versions"} <= set(document["environment"])
    assert str(tmp_path.parent) not in out.read_text(encoding="utf-8")


@pytest.mark.skipif(why_not("tensorrt") is None, reason="TensorRT runs here")
def test_a_target_that_cannot_be_built_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_time, "_made", lambda *_: pytest.fail("it began"))
    with pytest.raises(FlowlessError, match=r"--target tensorrt: .*install"):
        main([*SMALL, "--target", "tensorrt", "--out", str(tmp_path / "export.json")])
    assert not (tmp_path / "export.json").exists()


def test_a_users_mistake_comes_out_of_the_other_process_as_one(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    with pytest.raises(FlowlessError, match=r"broken\.jsonl"):
        main(["--checkpoint", str(tmp_path / "mine.safetensors"), "--calibrate", str(broken), "--out", str(tmp_path / "export.json")])
    assert not (tmp_path / "export.json").exists()

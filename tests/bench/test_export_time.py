"""From checkpoint to verified INT8 bundle: the stages add up, and what cannot be verified has no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowless.bench.speed.export_time import ExportTime, main
from flowless.engines.backends.backend import why_not
from flowless.errors import FlowlessError

SMALL = ["--model", "pan-lite-r18", "--width", "0.25", "--blocks", "1", "--size", "48", "--classes", "3", "--calibration-videos", "4"]


@pytest.mark.slow
def test_stages_add_up_to_the_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "export.json"
    main([*SMALL, "--out", str(out), "--json"])
    document = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == document
    stages = {row["stage"]: row["seconds"] for row in document["stages"]}
    assert list(stages) == ["start", "export", "fp32 engine", "calibrate, quantise", "int8 engine"]
    assert all(seconds >= 0 for seconds in stages.values())
    assert sum(stages.values()) == pytest.approx(60 * document["minutes"], abs=0.1)
    assert document["engine"]["status"] == "verified"
    assert document["engine"]["snr_db"] > 16
    assert document["settings"]["calibration_videos"] == 4
    (goal,) = document["goals"]
    assert goal["wanted"] == "<= 2"
    assert goal["measured"] == pytest.approx(document["minutes"], abs=0.01)
    assert {"processor", "cores", "versions"} <= set(document["environment"])
    assert str(tmp_path.parent) not in out.read_text(encoding="utf-8")


@pytest.mark.skipif(why_not("tensorrt") is None, reason="TensorRT runs here")
def test_a_target_that_cannot_be_built_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExportTime, "checkpoint", lambda *_: pytest.fail("it began"))
    with pytest.raises(FlowlessError, match=r"--target tensorrt: .*install"):
        main([*SMALL, "--target", "tensorrt", "--out", str(tmp_path / "export.json")])
    assert not (tmp_path / "export.json").exists()


def test_an_error_in_the_other_process_comes_out_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExportTime, "checkpoint", lambda _, folder: (folder / "model.safetensors").write_bytes(b"damaged"))
    with pytest.raises(FlowlessError, match=r"model\.safetensors"):
        main([*SMALL, "--out", str(tmp_path / "export.json")])
    assert not (tmp_path / "export.json").exists()

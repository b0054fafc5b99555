"""`flowless bench live`: the engine, the watcher and the baseline are measured on the same streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowless.bench.speed import live

SMALL = ["--model", "tsm-r18", "--size", "64", "--width", "0.25", "--blocks", "1", "--classes", "3"]


@pytest.mark.slow
def test_streams_are_measured_beside_the_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_WARM_UP", 0.5)
    out = tmp_path / "live.json"
    live.main([*SMALL, "--streams", "2", "--seconds", "1", "--runs", "2", "--out", str(out), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == document
    assert [row["form"] for row in document["capacity"]] == ["streaming", "clip"]
    watched, queued, above, queued_above = document["loads"]
    assert (watched["load"], above["load"]) == (0.8, 2.0)
    for row in document["loads"]:
        assert row["frames"] > 0
        assert 0 < row["latency_ms_p50"] <= row["latency_ms_p99"]
    assert queued["dropped"] == queued_above["dropped"] == 0, "the baseline drops nothing"
    assert above["frames"] > watched["frames"]


def test_the_warm_up_is_left_out() -> None:
    scored = [(1.0, 9.0), *((4.0 + number, 0.01 * (number + 1)) for number in range(4))]
    found = live._figures(scored, 0.0, 11.0, frames=5, dropped=2, fps=1.0)
    assert found["scored_per_s"] == 0.5, "four scored in the eight seconds after the warm-up"
    assert (found["latency_ms_first_half"], found["latency_ms_second_half"]) == (15.0, 35.0)
    assert found["latency_ms_p50"] == 25.0

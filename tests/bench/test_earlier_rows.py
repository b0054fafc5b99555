"""Rows of an earlier result: taken under the same settings alone, with the environment that they were measured in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from readme_figures import ROOT

from flowless.bench.systems.comparison import earlier_rows
from flowless.bench.systems.settings import Real, Systems
from flowless.errors import FlowlessError
from flowless.train.recipes import find_recipe

RESULTS = ROOT / "bench" / "results"
CONDITIONS = {"benchmark": "systems", **Systems().conditions()}


def changed(path: Path, **changes: Any) -> Path:
    """Write the committed result of `bench systems` with changes."""
    document = json.loads((RESULTS / "systems.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, **changes}), encoding="utf-8")
    return path


def real_conditions(shapes: Path, system: str) -> dict[str, Any]:
    """Return what `bench real` compares, for other videos than those of the committed result."""
    settings = Real(train=shapes / "train.index.jsonl", test=shapes / "val.index.jsonl")
    return replace(settings, systems=(system,)).conditions()


def test_the_committed_results_can_be_extended(shapes: Path) -> None:
    systems = earlier_rows(RESULTS / "systems.json", CONDITIONS)
    assert [row["system"] for row in systems][:2] == ["tsn", "tsm"]
    assert all(row["environment"]["processor"] for row in systems)
    document = json.loads((RESULTS / "real.json").read_text(encoding="utf-8"))
    same = {"benchmark": "real", "labels": 27, "shuffle_seed": 0, "recipe": real_conditions(shapes, "tsn")["recipe"]}
    assert [row["top1"] for row in earlier_rows(RESULTS / "real.json", same)] == [row["top1"] for row in document["systems"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "real"}, "benchmark systems, here real"),
        ({"epochs": 5, "frames": 32}, "epochs 6, here 5; frames 16, here 32"),
        ({"recipe": {"scales": (1.0,)}}, r"recipe\.scales None, here \[1\.0\]"),
    ],
)
def test_rows_of_other_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowlessError, match=f"other settings: {message}"):
        earlier_rows(RESULTS / "systems.json", {**CONDITIONS, **change})


def test_what_is_no_earlier_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    contents = (b"{", b"\xff\xfe", b"[]", b'{"benchmark": "systems"}', b'{"benchmark": "systems", "settings": {}, "systems": 3}')
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(FlowlessError, match="cannot be read as a result of this benchmark"):
            earlier_rows(path, CONDITIONS)
    row = json.loads((RESULTS / "systems.json").read_text(encoding="utf-8"))["systems"][0]
    lacking = {name: value for name, value in row.items() if name != "pairs"}
    changes: list[dict[str, Any]] = [{"systems": [3]}, {"systems": [lacking]}, {"environment": None}]
    for change in changes:
        with pytest.raises(FlowlessError, match="cannot be read as a result of this benchmark"):
            earlier_rows(changed(path, **change), CONDITIONS)
    with pytest.raises(FlowlessError, match="FileNotFoundError"):
        earlier_rows(tmp_path / "none.json", CONDITIONS)


def test_what_real_compares_is_what_all_systems_share(shapes: Path) -> None:
    shared = [real_conditions(shapes, name) for name in Real.systems]
    assert all(one == shared[0] for one in shared)
    assert (shared[0]["recipe"]["epochs"], shared[0]["recipe"]["precision"]) == (24, "fp32")
    assert "da_stride" in find_recipe("da-tsm-r18/tiny").to_dict(), "a family's own option may differ, and is not compared"

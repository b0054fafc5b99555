"""Rows of an earlier result: taken under the same settings alone, with the environment that they were measured in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from readme_figures import ROOT

from flowless.bench.systems.comparison import earlier_rows
from flowless.bench.systems.real import Real, shared_fields
from flowless.bench.systems.systems import Systems
from flowless.errors import FlowlessError
from flowless.train.recipes import find_recipe

RESULTS = ROOT / "bench" / "results"
#: The settings of the committed results.
SYSTEMS, REAL = Systems(precision="fp32"), Real(train=Path("a"), test=Path("b"), precision="fp32")


def changed(path: Path, **changes: Any) -> Path:
    """Write the committed result of `bench systems` with changes."""
    document = json.loads((RESULTS / "systems.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, **changes}), encoding="utf-8")
    return path


def read(path: Path, **changes: Any) -> list[dict[str, Any]]:
    """Read what is there as an earlier result of `bench systems`."""
    return earlier_rows(Systems(precision="fp32", earlier=path), {**SYSTEMS.conditions(), **changes})


def test_the_committed_results_can_be_extended() -> None:
    systems = read(RESULTS / "systems.json", jobs=7)
    assert [row["system"] for row in systems][:2] == ["tsn", "tsm"]
    assert all(row["environment"]["processor"] for row in systems)
    document = json.loads((RESULTS / "real.json").read_text(encoding="utf-8"))
    conditions = {"labels": 27, "recipe": shared_fields(REAL.recipe("tsn", 0))}
    real = earlier_rows(Real(train=Path("a"), test=Path("b"), earlier=RESULTS / "real.json"), conditions)
    assert [row["top1"] for row in real] == [row["top1"] for row in document["systems"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 5}, "epochs 6, here 5"),
        ({"epochs": 5, "frames": 32}, "frames 16, here 32; epochs 6, here 5"),
        ({"recipe": {"scales": (1.0,)}}, r"recipe\.scales None, here \[1\.0\]"),
    ],
)
def test_rows_of_other_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowlessError, match=f"other settings: {message}"):
        read(RESULTS / "systems.json", **change)


def test_what_is_no_earlier_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    with pytest.raises(FlowlessError, match="cannot be read"):
        read(path)
    for text in (b"{", b"\xff\xfe"):
        path.write_bytes(text)
        with pytest.raises(FlowlessError, match="cannot be read"):
            read(path)
    for content in ([], {"benchmark": "systems"}, {"benchmark": "systems", "settings": {}, "systems": 3}):
        path.write_text(json.dumps(content))
        with pytest.raises(FlowlessError, match="no result of `flowless bench systems`"):
            read(path)
    row = json.loads((RESULTS / "systems.json").read_text(encoding="utf-8"))["systems"][0]
    lacking = {name: value for name, value in row.items() if name != "pairs"}
    changes: list[dict[str, Any]] = [{"systems": [3]}, {"systems": [lacking]}, {"benchmark": "real"}, {"environment": None}]
    for change in changes:
        with pytest.raises(FlowlessError, match="no result of `flowless bench systems`"):
            read(changed(path, **change))


def test_rows_of_unknown_systems_are_left_out(tmp_path: Path) -> None:
    document = json.loads((RESULTS / "systems.json").read_text(encoding="utf-8"))
    path = changed(tmp_path / "old.json", systems=[document["systems"][0], {**document["systems"][1], "system": "gone"}])
    assert [row["system"] for row in read(path)] == ["tsn"]


def test_what_real_compares_is_what_all_systems_share() -> None:
    shared = [shared_fields(REAL.recipe(name, seed)) for seed, name in enumerate(REAL.systems)]
    assert all(one == shared[0] for one in shared)
    assert (shared[0]["epochs"], shared[0]["precision"]) == (24, "fp32")
    assert "da_stride" in find_recipe("da-tsm-r18/tiny").to_dict(), "a family's own option may differ, and is not compared"

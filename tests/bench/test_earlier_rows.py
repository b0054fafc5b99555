"""Rows of an earlier result: taken under the same settings alone, never over new ones, with where they were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowless.bench.lib.earlier_rows import earlier_rows, in_order
from flowless.bench.systems.real import Real, _alike
from flowless.errors import FlowlessError
from flowless.train.recipes import find_recipe

#: The other figures of a row.
ROW = dict.fromkeys(("base", "control", "about", "seeds", "spread", "train_top1", "pairs"))
SETTINGS: dict[str, Any] = {"epochs": 6, "jobs": 2, "recipe": {"scales": (1.0, 0.875), "lr": 0.002}}


def written(path: Path, **changes: Any) -> Path:
    """Write an earlier result of two systems, of which one was itself taken from a result before it."""
    rows = [{**ROW, "system": "tsn", "top1": 0.2}, {**ROW, "system": "tsm", "top1": 0.9, "environment": {"processor": "oldest"}}]
    document = {"benchmark": "systems", "environment": {"processor": "old"}, "settings": SETTINGS, "systems": rows, **changes}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def read(path: Path | None, *, settings: dict[str, Any] = SETTINGS, known: tuple[str, ...] = ("tsn", "tsm")) -> list[dict[str, Any]]:
    return earlier_rows(path, benchmark="systems", settings=settings, known=known)


def test_rows_are_taken_with_the_environment_that_they_were_trained_in(tmp_path: Path) -> None:
    path = written(tmp_path / "old.json")
    # How many trainings ran side by side changes no figure.
    taken = read(path, settings={**SETTINGS, "jobs": None})
    assert [(row["system"], row["environment"]["processor"]) for row in taken] == [("tsn", "old"), ("tsm", "oldest")]
    assert read(path, known=("tsm",)) == taken[1:], "a system that is no more has no row"
    assert read(None) == []


def test_new_rows_come_first_and_all_in_the_systems_order(tmp_path: Path) -> None:
    rows = in_order(
        [*read(written(tmp_path / "old.json")), {"system": "stm", "top1": 1.0}, {"system": "tsn", "top1": 0.3}], ("stm", "tsm", "tsn")
    )
    assert [(row["system"], row["top1"]) for row in rows] == [("stm", 1.0), ("tsm", 0.9), ("tsn", 0.3)]
    assert "environment" not in rows[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 5}, "epochs 6, here 5"),
        ({"recipe": {"scales": (1.0,), "lr": 0.004}}, r"recipe\.scales \[1\.0, 0\.875\], here \[1\.0\]; recipe\.lr 0\.002, here 0\.004"),
        ({"frames": 16}, "frames None, here 16"),
    ],
)
def test_rows_of_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowlessError, match=f"other settings: {message}"):
        read(written(tmp_path / "old.json"), settings={**SETTINGS, **change})


def test_what_is_no_earlier_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowlessError, match="cannot be read"):
        read(tmp_path / "none.json")
    for text in (b"{", b"\xff\xfe"):
        (tmp_path / "bad.json").write_bytes(text)
        with pytest.raises(FlowlessError, match="cannot be read"):
            read(tmp_path / "bad.json")
    for text in ("[]", '{"benchmark": "real"}', '{"benchmark": "systems"}', '{"benchmark": "systems", "settings": {}, "systems": 3}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(FlowlessError, match="no result of `flowless bench systems`"):
            read(tmp_path / "bad.json")
    lacking = {name: value for name, value in {**ROW, "system": "tsn", "top1": 0.5}.items() if name != "pairs"}
    for rows in ([3], [{"top1": 0.5}], [{**ROW, "top1": 0.5, "system": ["tsn"]}], [lacking]):
        with pytest.raises(FlowlessError, match="no result of `flowless bench systems`"):
            read(written(tmp_path / "bad.json", systems=rows))


def test_what_real_compares_is_what_all_systems_share() -> None:
    settings = Real(train=Path("a.jsonl"), test=Path("b.jsonl"))
    shared = [_alike(settings.recipe(name, seed=seed, precision="fp32")) for seed, name in enumerate(settings.systems)]
    assert all(one == shared[0] for one in shared)
    assert (shared[0]["epochs"], shared[0]["precision"]) == (24, "fp32")
    assert "da_stride" in find_recipe("da-tsm-r18/tiny").to_dict(), (
        "a family's own option is not compared: it may change for that family alone"
    )

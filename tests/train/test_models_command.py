"""`flowless models`: what there is to choose from, counted and beside the papers."""

from __future__ import annotations

import json

import pytest

from flowless.cli import main
from flowless.train.models import MODELS
from flowless.train.models.papers import PAPERS


def test_a_family_as_json(capsys):
    assert main(["models", "stm", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in document["models"]}
    assert list(rows) == ["stm-r50", "stm-r18", "stm-r34"]
    row = rows["stm-r50"]
    assert set(row) == {"name", "system", "card", "clip", "parameters", "gmacs", "paper"}
    assert row["system"] == "STM"
    assert row["clip"] == [8, 1, 224, 224, 3]
    assert row["paper"] == {"source": "STM, Table 4", "parameters": 24_000_000, "gmacs": 33.3, "views": 1, "top1": {"something-v1": 48.5}}
    assert row["parameters"] == pytest.approx(row["paper"]["parameters"], rel=0.01)
    assert row["gmacs"] == pytest.approx(row["paper"]["gmacs"], rel=0.01)


def test_a_family_tells_its_card(capsys):
    assert main(["models", "tsn"]) == 0
    told = capsys.readouterr()
    assert "blind to the order of segments" in told.err + told.out
    assert "tsn-r101" in told.out


def test_an_unknown_family(capsys):
    assert main(["models", "c3d"]) == 1
    assert "no family of models 'c3d'; there are tsn, tsm" in " ".join(capsys.readouterr().err.split())


def test_papers_speak_of_models_that_exist():
    assert set(PAPERS) <= set(MODELS)
    assert {name.rpartition("-")[0] for name in MODELS} - {name.rpartition("-")[0] for name in PAPERS} == {"pan-rgb", "pan-pa"}

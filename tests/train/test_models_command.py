"""`flowless models`: the list of models with counted sizes and the papers' figures."""

from __future__ import annotations

import json

import pytest

from flowless.cli import main
from flowless.train.models import MODELS
from flowless.train.models.paper_results import PAPER_RESULTS


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


def test_a_family_prints_its_model_card(capsys):
    assert main(["models", "tsn"]) == 0
    printed = capsys.readouterr()
    assert "blind to the order of segments" in printed.err + printed.out
    assert "tsn-r101" in printed.out


def test_an_unknown_family_is_refused(capsys):
    assert main(["models", "c3d"]) == 1
    assert "family is 'c3d'; it must be one of tsn, tsm" in " ".join(capsys.readouterr().err.split())


def test_paper_results_are_of_existing_models():
    assert set(PAPER_RESULTS) <= set(MODELS)
    assert {name.rpartition("-")[0] for name in MODELS} - {name.rpartition("-")[0] for name in PAPER_RESULTS} == {"pan-rgb", "pan-pa"}

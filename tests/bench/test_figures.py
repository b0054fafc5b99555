"""No number in the README is typed by hand."""

from __future__ import annotations

import json

import pytest

from flowless.bench.figures import BEGIN, END, ROOT, render, replaced
from flowless.errors import FlowlessError


def test_the_readme_says_what_the_results_say() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replaced(readme, render(ROOT / "bench" / "results")) == readme, "run: python bench/figures.py"


def test_results_name_their_environment_and_no_place() -> None:
    for path in (ROOT / "bench" / "results").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert {"processor", "cores", "versions"} <= set(json.loads(text)["environment"])
        assert "/home/" not in text
        assert "/tmp/" not in text


def test_figures_are_replaced_between_their_lines() -> None:
    assert replaced(f"a\n{BEGIN}old\n{END}b\n", "new\n") == f"a\n{BEGIN}new\n{END}b\n"
    with pytest.raises(FlowlessError, match="must both be there"):
        replaced("no lines", "new")

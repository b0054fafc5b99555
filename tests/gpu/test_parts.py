"""Every part of `flowless bench gpu`, quickly: a part that can run here must pass its checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowless.bench.gpu.parts import PARTS, chosen_parts
from flowless.bench.gpu.results import Settings
from flowless.bench.gpu.subprocess_runner import failures, run_part

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What parts share: the network and its graphs, made by the first test that needs them."""
    return tmp_path_factory.mktemp("gpu")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PARTS)
def test_part(name: str, work: Path) -> None:
    found = {"status": ""}
    for part, seconds in chosen_parts(name).items():
        found = run_part(part, settings=Settings(quick=True, folder=work), seconds=seconds, scratch=work)
        assert not found["status"].startswith("not here: no CUDA GPU"), "this test demands a GPU"
        assert failures(part, found) == []
    if found["status"].startswith("not here"):
        pytest.skip(found["status"])

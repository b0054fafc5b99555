"""Every part of `flowless bench gpu`, quickly: a part that can run here must pass its checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowless.bench.gpu.ledger import Settings
from flowless.bench.gpu.parts import PARTS, chosen_parts
from flowless.bench.gpu.subprocess_runner import failures, run_part

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What parts share: the network and its graphs, made by the first test of those parts."""
    return tmp_path_factory.mktemp("gpu")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PARTS)
def test_part(name: str, work: Path) -> None:
    part = PARTS[name]
    for need in chosen_parts(name):
        # Each part by itself too: `pytest -k compiled` brings the network that it runs.
        if need not in {name, "machine"} and not (work / f"{need}.json").is_file():
            run_part(need, f"flowless.bench.gpu.{PARTS[need].function}", settings=Settings(quick=True, work=str(work)), seconds=120)
    found = run_part(name, f"flowless.bench.gpu.{part.function}", settings=Settings(quick=True, work=str(work)), seconds=part.seconds)
    assert not found["status"].startswith("not here: no CUDA GPU"), "this test demands a GPU"
    assert found["facts"].get("gpu", True) is not None
    assert failures(name, found) == []
    if found["status"].startswith("not here"):
        pytest.skip(found["status"])

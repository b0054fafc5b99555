"""Bundles of the export tests, and the C++ programs that tests run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The helper modules are beside the tests, which are not a package.
sys.path.insert(0, str(Path(__file__).parent))

_spec = importlib.util.spec_from_file_location("flowless_export_fixtures", Path(__file__).parents[1] / "export" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

checkpoint = _module.checkpoint
exported = _module.exported
built = _module.built
bundle = _module.bundle


@pytest.fixture(scope="session")
def reader(once) -> Iterator:
    """The program that reads bundles and chooses engines."""
    from manifest_reader import Reader, build_reader

    program = Reader(once("read-manifest", build_reader))
    yield program
    program.close()

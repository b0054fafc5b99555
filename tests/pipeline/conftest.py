"""Fixture of bar-code videos, each encoded once per session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The helper modules are beside the tests, which are not a package.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def barcodes(tmp_path_factory: pytest.TempPathFactory):
    """Return a function from a Kind to its encoded file."""
    folder = tmp_path_factory.mktemp("barcodes")
    written = {}

    def encoded(kind) -> Path:
        name = kind.name + kind.suffix
        if name not in written:
            written[name] = kind.write(folder)
        return written[name]

    return encoded

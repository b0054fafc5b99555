"""Fixture that runs Python with only flowless and the base install's libraries, made from links without a network."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _link_base_install(folder: Path) -> Path:
    """Link flowless and the libraries of requirements/base.txt into `folder`; return it."""
    folder.mkdir(parents=True)
    (folder / "flowless").symlink_to(ROOT / "flowless", target_is_directory=True)
    pinned = (ROOT / "requirements" / "base.txt").read_text(encoding="utf-8")
    for name in re.findall(r"^([a-z0-9][a-z0-9._-]*)==", pinned, flags=re.MULTILINE):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # pinned for another system
        for part in {file.parts[0] for file in distribution.files or () if ".." not in file.parts}:
            target, link = Path(str(distribution.locate_file(part))), folder / part
            if target.exists() and not link.exists() and part != "__pycache__":
                link.symlink_to(target)
    return folder


@pytest.fixture(scope="session")
def run_bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], subprocess.CompletedProcess[str]]:
    """Return a function that runs Python with the given arguments, the base install and the standard library."""
    site = _link_base_install(tmp_path_factory.mktemp("bare") / "site")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(args: Sequence[str]) -> subprocess.CompletedProcess[str]:
        # -S leaves out this environment's site-packages, so only the links are found.
        command = [sys.executable, "-S", *map(str, args)]
        return subprocess.run(command, env={**clean, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False, cwd=site)

    return run

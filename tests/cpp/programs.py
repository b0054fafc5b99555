"""Runs programs in tests."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program, which must succeed; its output is in the failure's message."""
    done = subprocess.run([str(item) for item in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done

"""Memory allocation settings of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flowless.machine import keep_freed_memory

#: Frees and allocates three arrays of 20 MB repeatedly, as training steps do with feature maps; prints the number of page faults.
STEPS = """
import resource, sys
import numpy as np
from flowless.machine import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    for value in [np.ones(20_000_000, np.uint8) for _ in range(3)]:
        value.sum()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has mallopt")
def test_keep_freed_memory_avoids_page_faults() -> None:
    faults = [int(subprocess.check_output([sys.executable, "-c", STEPS, how], text=True)) for how in ("default", "kept")]
    assert faults[0] > 1000
    assert faults[1] < faults[0] / 10


def test_keep_freed_memory_without_mallopt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowless.machine.ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()

"""What this process may use of the machine."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return how many cores this process may run on, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

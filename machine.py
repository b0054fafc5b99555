"""What this process may use of the machine, and which libraries are installed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def usable_cores() -> int:
    """Return how many cores this process may run on, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_physical_cores() -> int:
    """Return how many of the usable cores are cores of their own: two that hyper-threading makes of one count once."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    usable = os.sched_getaffinity(0)
    places = [Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list") for core in usable]
    if not all(place.is_file() for place in places):
        return len(usable)
    return len({place.read_text(encoding="ascii") for place in places})


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each distribution that is installed, in the order asked for; the others are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

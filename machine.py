"""What this process may use of the machine, and which libraries are installed."""

from __future__ import annotations

import ctypes
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


#: glibc's mallopt: above which size memory comes from the system and goes back to it, and how much that is free is kept.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
#: The largest that glibc takes (half of a heap of its threads), and an int's.
_THRESHOLD, _KEPT = 32 * 2**20, 2**31 - 1


def keep_freed_memory() -> bool:
    """Have the C library keep memory that is freed, for the whole process and for good, where it is glibc; return whether it does.

    Every step of a training on a processor frees its feature maps and asks for as many again. By default glibc gives large ones back,
    and the system hands out zeroed pages one by one: 18 % of a step's time (TSM ResNet-18 of a quarter of the channels, 20 clips of 8
    frames of 48 x 48, one core). The process stays as large as it was at its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _KEPT))


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each distribution that is installed, in the order asked for; the others are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

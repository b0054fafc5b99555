"""Measure how busy the machine is before a benchmark: on a busy one no speed is judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowless.console import log

#: Share of the processors' time that other programs may use.
LIMIT = 0.15
_STAT = Path("/proc/stat")


def busy_share(*, read: Callable[[], str] = _STAT.read_text, sleep: Callable[[float], None] = time.sleep) -> float | None:
    """Return the share of the processors' time that other programs use during two seconds; None where the system has no /proc/stat.

    Time that a host takes from a virtual machine counts as used. Warns above `LIMIT`: runners that split their work evenly over
    threads then wait for the slowest thread, some far more than others, so that not even ratios can be compared.
    """
    try:
        before = _times(read())
        sleep(2)
        spent = [after - first for first, after in zip(before, _times(read()), strict=True)]
    except FileNotFoundError:
        return None
    share = round(1 - (spent[3] + spent[4]) / sum(spent), 3) if sum(spent) else None  # idle, and waiting for a disk
    if share and share > LIMIT:
        warning = f"warning: other programs use {share:.0%} of this machine's processors. Times will be too long, and goals of speed are"
        log.print(f"{warning} not judged. Measure again on an idle machine.", style="yellow", markup=False)
    return share


def judged(goals: list[dict[str, Any]], share: float | None) -> list[dict[str, Any]]:
    """Return goals as they are, or with `met` null where the machine was busy before the run."""
    return [{**row, "met": None} for row in goals] if share is not None and share > LIMIT else goals


def _times(text: str) -> list[int]:
    """Read the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user."""
    return [int(word) for word in text.splitlines()[0].split()[1:9]]

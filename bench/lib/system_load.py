"""Whether the machine is busy with other things: what makes a benchmark's numbers worth keeping or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowless.console import log

#: Share of the processors' time that others may use.
LIMIT = 0.15
_STAT = Path("/proc/stat")


def busy_share(*, seconds: float = 2.0, read: Callable[[], str] | None = None, sleep: Callable[[float], None] = time.sleep) -> float | None:
    """Return the share of the processors' time that others use while this program waits; None where the system does not say.

    A machine's own time stolen by its host counts as used. Warns where it is more than `LIMIT`: runners that split their work
    evenly over threads then wait for the slowest one, some far more than others, and not even ratios can be compared.
    """
    if read is None:
        if not _STAT.exists():
            return None
        read = _STAT.read_text
    before = _times(read())
    sleep(seconds)
    spent = [after - first for first, after in zip(before, _times(read()), strict=True)]
    if sum(spent) <= 0:
        return None
    share = round(1 - (spent[3] + spent[4]) / sum(spent), 3)  # idle, and waiting for a disk
    if share > LIMIT:
        log.print(
            f"warning: other programs use {share:.0%} of this machine's processors; the figures will be too slow, some more than "
            "others, and goals of speed are not judged. Measure again on a quiet machine.",
            style="yellow",
            markup=False,
        )
    return share


def judged(goals: list[dict[str, Any]], share: float | None) -> list[dict[str, Any]]:
    """Return goals as they are, or unjudged (`met` is null) where the machine was busy before the run."""
    return [{**row, "met": None} for row in goals] if share is not None and share > LIMIT else goals


def _times(text: str) -> list[int]:
    """Read the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user."""
    return [int(word) for word in text.splitlines()[0].split()[1:9]]

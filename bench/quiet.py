"""Whether the machine was busy with other things: what makes a benchmark's numbers worth keeping or not."""

from __future__ import annotations

import os

from flowless.console import log


def load_before(threads: int) -> float | None:
    """Return the machine's load (the mean number of busy threads in the last minute); warn where it is not quiet.

    On a busy machine rivals that split their work evenly over threads wait for the slowest one, some far more than others:
    not even the ratios can be compared then.
    """
    try:
        load = round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None
    if load > 0.3 * threads:
        log.print(
            f"warning: other programs keep {load:.1f} processor cores busy; the figures will be too slow, and some more than others. "
            "Measure again on a quiet machine.",
            style="yellow",
            markup=False,
        )
    return load

"""What an engine must pass before it is kept: plain data, so that `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowless.errors import CheckFailed, FlowlessError


@dataclass(frozen=True, kw_only=True)
class Checks:
    """The gates of a build."""

    data: Path | None = None
    """Index of labelled videos: the engine's top-1 on them may fall by at most max_drop."""
    max_drop: float = 0.5
    """Points of top-1, of 100, that an engine may lose against fp32."""
    slower: bool = False
    """Keep an engine of lower precision though it is no faster than the one above it."""
    parity: bool = True
    """Compare scores with PyTorch's. Off only where weights are random: their clips' scores differ by less than any rounding."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.max_drop <= 100:
            raise FlowlessError(f"max_drop is {self.max_drop}; it must be from 0 to 100 points of top-1.")


class EngineRefused(CheckFailed):
    """An engine was built and failed a gate.

    Attributes:
        gate: `layers`, `parity`, `accuracy` or `speed`.
        short: Why, in a few words, for a table.
        figures: What had been measured until then.
    """

    def __init__(self, message: str, *, gate: str, short: str, figures: dict[str, Any]) -> None:
        super().__init__(message)
        self.gate = gate
        self.short = short
        self.figures = figures

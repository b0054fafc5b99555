"""Limits that an engine must meet before it is kept. This module imports nothing heavy, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowless.engines.bundle.manifest import Artefact
from flowless.errors import CheckFailed, FlowlessError
from flowless.files import sha256_of


@dataclass(frozen=True, kw_only=True)
class Checks:
    """The gates of a build."""

    data: Path | None = None
    """Index of labelled videos: the engine's top-1 on them may be at most max_drop lower than the exact engine's."""
    max_drop: float = 0.5
    """Points of top-1, of 100, that an engine may lose against fp32."""
    slower: bool = False
    """Keep an engine that is no faster than a kept one of higher precision."""
    parity: bool = True
    """Compare scores with PyTorch's. Switch it off only for random weights, whose scores differ between clips by less than rounding."""

    def __post_init__(self) -> None:
        """Raise `FlowlessError` for an index that is not there, or a drop that is not from 0 to 100."""
        if self.data is not None and not self.data.is_file():
            raise FlowlessError(f"data is {self.data}: no such index. Make one with: flowless scan VIDEOS --out {self.data}")
        if not 0 <= self.max_drop <= 100:
            raise FlowlessError(f"max_drop is {self.max_drop}; it must be from 0 to 100 points of top-1.")


class EngineRefused(CheckFailed):
    """An engine was built and failed a gate.

    Attributes:
        gate: `layers`, `parity`, `accuracy` or `speed`.
        short: The reason, short enough for a table.
        figures: What was measured before it failed.
    """

    def __init__(self, message: str, *, gate: str, short: str, figures: dict[str, Any]) -> None:
        super().__init__(message)
        self.gate = gate
        self.short = short
        self.figures = figures


def passed(record: Artefact, checks: Checks) -> bool:
    """Whether a kept engine has passed these gates or stricter ones; an engine that cannot run here has passed those that it can."""
    if record.status == "built, not run here" or not checks.parity:
        return True
    drop = 100 * (record.figures.get("fp32_top1", 0.0) - record.figures.get("top1", 0.0))
    accurate = checks.data is None or (record.figures.get("data") == sha256_of(checks.data) and drop <= checks.max_drop + 1e-9)
    other = record.figures.get("above_latency_ms_p50")
    fast = checks.slower or other is None or record.figures["latency_ms_p50"] < other
    return record.status == "verified" and accurate and fast

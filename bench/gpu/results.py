"""Settings and results of a part of the GPU suite; the results are written after every entry, so that a crash loses none."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowless.errors import FlowlessError
from flowless.files import write_json


class NotHere(Exception):
    """This machine lacks what a part needs; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every part: the device, how long to measure, and the folder of the files that parts share."""

    device: str = "cuda"
    """`cpu` rehearses the same code with small sizes; its figures mean nothing."""
    quick: bool = False
    folder: Path

    @property
    def rehearsal(self) -> bool:
        """Whether this is a rehearsal on the CPU."""
        return self.device == "cpu"

    @property
    def batches(self) -> tuple[int, ...]:
        """Clips in one call, ascending."""
        return (1, 2) if self.rehearsal else (1, 8) if self.quick else (1, 8, 32)

    @property
    def most_seconds(self) -> float:
        """Seconds that one measurement may take."""
        return 0.02 if self.rehearsal else 0.2 if self.quick else 0.6


@dataclass(kw_only=True)
class Results:
    """A part's results, written to `path` after every entry."""

    path: Path
    settings: Settings
    deadline: float = math.inf
    """Time of `time.monotonic` after which nothing new is begun."""
    document: dict[str, Any] = field(default_factory=lambda: empty(None))

    def fact(self, **facts: Any) -> None:
        """Record what is true of the whole part."""
        self.document["facts"] |= facts
        self.write()

    def row(self, **figures: Any) -> None:
        """Record one measurement."""
        self.document["rows"].append(figures)
        self.write()

    def check(self, what: str, *, passed: bool | None, **figures: Any) -> None:
        """Record a comparison; `passed` is None where there is nothing to judge it by."""
        self.document["checks"].append({"check": what, "passed": passed, **figures})
        self.write()

    def attempt(self, what: str, run: Callable[[], object], *, may_refuse: bool = False) -> None:
        """Run one step, if there is time; record its exception, with `may_refuse` as a library's refusal, such as of a precision."""
        if time.monotonic() > self.deadline:
            self.document["left_out"][what] = "not run: no time left"
            return
        self.write(at=what)
        try:
            run()
        except Exception as error:  # libraries raise types of their own, one of them plain RuntimeError
            fault = isinstance(error, AttributeError | TypeError | NameError | LookupError | AssertionError)
            reason = reason_of(error, "refused: " if may_refuse and not fault else "")
            kind = "left_out" if reason.startswith(("refused: ", "not here: ")) else "errors"
            self.document[kind][what] = reason
        self.write(at=None)

    def write(self, **more: Any) -> None:
        """Write the file, with `status`, how the part ended, or `at`, the step that runs."""
        self.document |= more
        write_json(self.path, _plain(self.document))


def empty(status: str | None) -> dict[str, Any]:
    """Return a part's document without results; `status` is `ran`, `not here: ...`, `not run: ...` or `failed: ...`."""
    return {"status": status, "seconds": 0.0, "facts": {}, "rows": [], "checks": [], "left_out": {}, "errors": {}}


def add_shares(parts: dict[str, dict[str, Any]]) -> None:
    """Write `tflop_per_s` and `share_of_peak` into every row that has clips per second and a precision; a MAC is two operations."""
    peaks = {row["arithmetic"]: row["tflop_per_s"] for row in parts.get("peak", {}).get("rows", [])}
    macs = parts.get("network", {}).get("facts", {}).get("macs_per_clip")
    for row in (row for part in parts.values() for row in part["rows"]):
        own = row.get("macs_per_clip", macs)
        if row.get("clips_per_s") and "precision" in row and own:
            row["tflop_per_s"] = round(2 * own * row["clips_per_s"] / 1e12, 4)
            if peak := peaks.get(row["precision"]):
                row["share_of_peak"] = round(row["tflop_per_s"] / peak, 4)


def reason_of(error: Exception, prefix: str) -> str:
    """Return `not here: ...` where an exception means that this machine lacks something, else prefix, type and message."""
    cause = error.__cause__ if isinstance(error, FlowlessError) else error
    if isinstance(cause, ModuleNotFoundError) and cause.name and not cause.name.startswith("flowless"):
        return f"not here: {cause.name.partition('.')[0]} is not installed"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"not here: {error}" if isinstance(error, NotHere) else f"{prefix}{type(error).__name__}: {' | '.join(lines[:4])[:600]}"


def _plain(value: Any) -> Any:
    """Return JSON values: NaN and infinity become null, NumPy's scalars Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value

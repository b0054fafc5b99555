"""Settings of a part of the GPU suite, and the document that it writes: every row at once, so that a crash loses nothing before it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flowless.errors import FlowlessError
from flowless.files import write_json

#: What no library refuses by: mistakes in a program, and so never taken for a refusal.
_OURS = (AttributeError, TypeError, NameError, LookupError, AssertionError)


class NotHere(Exception):
    """What a part needs is not on this machine; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every part."""

    device: Literal["cuda", "cpu"] = "cuda"
    """Where to measure. `cpu` rehearses: the same code with small sizes, no figure of worth."""
    quick: bool = False
    """Few repetitions and batches: shows that everything runs, in a minute or so."""
    work: str = "."
    """Folder that the parts share: the network's weights, its graphs, its reference scores."""
    videos: str | None = None
    """Folder of real videos to decode besides the ones made here."""

    @property
    def rehearsal(self) -> bool:
        """Whether figures mean nothing."""
        return self.device == "cpu"

    @property
    def folder(self) -> Path:
        """The shared folder."""
        return Path(self.work)

    @property
    def batches(self) -> tuple[int, ...]:
        """Clips in one call."""
        return (1, 2) if self.rehearsal else (1, 8) if self.quick else (1, 8, 32)

    @property
    def most_seconds(self) -> float:
        """Seconds that one measurement may take."""
        return 0.02 if self.rehearsal else 0.2 if self.quick else 0.6

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, for the part's process."""
        return asdict(self)


@dataclass(kw_only=True)
class Ledger:
    """A part's results, written to `path` after every entry."""

    path: Path
    settings: Settings
    deadline: float = math.inf
    """Time of `time.monotonic` after which nothing new should be begun."""
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    """How the part ended; None while it runs."""
    at: str | None = None
    """The piece that runs now: what a part that is stopped was at."""

    def fact(self, **facts: Any) -> None:
        """Write down what is true of the whole part."""
        self.facts |= facts
        self.write()

    def row(self, **figures: Any) -> None:
        """Write down one measurement."""
        self.rows.append(figures)
        self.write()

    def check(self, what: str, *, passed: bool | None, **figures: Any) -> None:
        """Write down a comparison; `passed` is None where there is nothing to judge it by."""
        self.checks.append({"check": what, "passed": passed, **figures})
        self.write()

    def leave_out(self, what: str, reason: str) -> None:
        """Write down why something was not measured."""
        self.left_out[what] = reason
        self.write()

    @contextmanager
    def trial(self, what: str, *, may_refuse: bool = False) -> Iterator[None]:
        """Run one piece of a part; what it raises is written down, and the part goes on.

        Args:
            what: Its name.
            may_refuse: An exception is a library's refusal, such as of a precision, and no fault of ours.
        """
        before, self.at = self.at, what
        self.write()
        try:
            yield
        except Exception as error:  # the libraries raise types of their own, one of them plain RuntimeError
            if reason := missing(error):
                self.leave_out(what, reason)
            elif may_refuse and not isinstance(error, _OURS):
                self.leave_out(what, f"refused: {error_text(error)}")
            else:
                self.errors[what] = error_text(error)
        self.at = before
        self.write()

    def in_time(self, what: str, *, needs: float = 0.0) -> bool:
        """Whether there is time for another piece, which takes `needs` seconds or so; where there is none, write that down."""
        left = self.seconds_left()
        if left > needs:
            return True
        reason = f"it takes about {needs:g} s, {left:.0f} were left" if needs else "the part's time was spent"
        self.leave_out(what, f"not run: {reason}")
        return False

    def seconds_left(self) -> float:
        """Return the seconds in which something new may be begun."""
        return max(self.deadline - time.monotonic(), 0.0)

    def share(self, pieces: float) -> float:
        """Return the seconds that one measurement may take where `pieces` are still to come: at most the settings' own."""
        return min(self.settings.most_seconds, self.seconds_left() / max(pieces, 1))

    def write(self) -> None:
        """Write the file."""
        names = ("status", "at", "facts", "rows", "checks", "left_out", "errors")
        write_json(self.path, plain({name: getattr(self, name) for name in names}))


def missing(error: BaseException) -> str | None:
    """Say `not here: ...` where an exception means that this machine lacks something; None where it means a fault."""
    if isinstance(error, NotHere):
        return f"not here: {error}"
    # A module may have put the library's absence into words of its own.
    cause = error.__cause__ if isinstance(error, FlowlessError) else error
    if isinstance(cause, ModuleNotFoundError) and cause.name and not cause.name.startswith("flowless"):
        return f"not here: {cause.name.partition('.')[0]} is not installed"
    return None


def error_text(error: BaseException) -> str:
    """Return an exception in a line or two: its type and the beginning of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " | ".join(lines[:4])[:600]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def plain(value: Any) -> Any:
    """Return JSON values: numbers that are none (infinite, not a number) become null, NumPy's become Python's."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

"""What flowless raises when the user can do something about it."""

from __future__ import annotations

from typing import ClassVar


class FlowlessError(Exception):
    """A mistake in the user's input: one paragraph with the bad value, what is allowed, and what to do.

    The command line prints the text without a traceback and leaves with `exit_code`.
    """

    exit_code: ClassVar[int] = 1


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error that has words in it, or its type's name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class CheckFailed(FlowlessError):
    """A gate (parity, accuracy) said no: nothing was kept."""

    exit_code: ClassVar[int] = 3

"""Errors that the user can fix."""

from __future__ import annotations

from typing import ClassVar


class FlowlessError(Exception):
    """A mistake in the user's input: one paragraph with the bad value, what is allowed, and what to do.

    The command line prints the text without a traceback and exits with `exit_code`.
    """

    exit_code: ClassVar[int] = 1


def first_line(error: BaseException) -> str:
    """Return the first non-blank line of an error's message, or the name of its type where the message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class CheckFailed(FlowlessError):
    """A check (parity, accuracy) failed; its artefact was not kept."""

    exit_code: ClassVar[int] = 3

"""What flowless raises when the user can do something about it."""

from __future__ import annotations

from typing import ClassVar


class FlowlessError(Exception):
    """A mistake in the user's input: one paragraph with the bad value, what is allowed, and what to do.

    The command line prints the text without a traceback and leaves with `exit_code`.
    """

    exit_code: ClassVar[int] = 1


class CheckFailed(FlowlessError):
    """A gate (parity, accuracy) said no: nothing was kept."""

    exit_code: ClassVar[int] = 3

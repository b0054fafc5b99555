"""flowless: fast video action recognition without optical flow, from video file to embedded engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowless.errors import CheckFailed, FlowlessError

if TYPE_CHECKING:
    from flowless.engines import load

__version__ = "0.1.0"
__all__ = ["CheckFailed", "FlowlessError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the engines when `load` is first accessed, so that `import flowless` stays fast."""
    if name == "load":
        from flowless.engines import load

        return load
    raise AttributeError(f"module 'flowless' has no attribute {name!r}")

"""Entry point of `python -m flowless` and of the `flowless` command."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command and return its exit code; Ctrl-C during imports exits like a later one."""
    try:
        from flowless.cli import main

        return main()
    except KeyboardInterrupt:
        sys.stderr.write("flowless: stopped.\n")
        return 130


if __name__ == "__main__":
    sys.exit(run())

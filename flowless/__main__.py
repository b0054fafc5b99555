"""`python -m flowless`, and the command `flowless`."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command; a Ctrl-C while its modules are imported ends it as one does later."""
    try:
        from flowless.cli import main

        return main()
    except KeyboardInterrupt:
        sys.stderr.write("flowless: stopped.\n")
        return 130


if __name__ == "__main__":
    sys.exit(run())

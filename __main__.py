"""`python -m flowless`."""

import sys

from flowless.cli import main

if __name__ == "__main__":
    sys.exit(main())

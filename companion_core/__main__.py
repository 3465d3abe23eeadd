"""`python -m companion_core` is the `companion` command."""

import sys

from companion_core.cli import main

if __name__ == "__main__":
    sys.exit(main())

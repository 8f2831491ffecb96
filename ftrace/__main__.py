"""``python -m ftrace``: the same as the command ``ftrace``."""

import sys

from ftrace.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""What a reader types next, who has been told where scores are."""

from __future__ import annotations

import os
import shlex
from pathlib import Path


def show_command(*paths: str | os.PathLike[str]) -> str:
    """Return the command that shows scores.

    Args:
        paths: Folders of score stores, or files of results.

    Example:
        >>> show_command("runs/a/online", "my runs/b")
        "ftrace show runs/a/online 'my runs/b'"
    """
    return " ".join(["ftrace show", *(shlex.quote(str(Path(path))) for path in paths)])

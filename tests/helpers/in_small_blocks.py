"""The `ftrace` command with blocks of 16 examples, which notes them and may be killed: several processes run it.

    python in_small_blocks.py attribute ...

NOTES is a file that gets a line for each block that is computed; KILL_AFTER lets the process kill itself at that line.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from ftrace.attribution import partial_scores, passes
from ftrace.cli import main

passes.BLOCK = 16
NOTES = Path(os.environ["NOTES"])
KILL_AFTER = int(os.environ.get("KILL_AFTER", "-1"))
_add = partial_scores.PartialScores.add
_unlink = Path.unlink


def add(self: Any, *arguments: Any) -> None:
    with NOTES.open("a") as notes:
        notes.write(f"{os.environ.get('LOCAL_RANK', '0')}\n")
    _add(self, *arguments)


def unlink(self: Path, *arguments: Any, **options: Any) -> None:
    """A sum's file is there, and its predecessor too."""
    if self.suffix == ".npz" and len(NOTES.read_text().splitlines()) == KILL_AFTER:
        os.kill(os.getpid(), signal.SIGKILL)
    _unlink(self, *arguments, **options)


partial_scores.PartialScores.add = add
Path.unlink = unlink

if __name__ == "__main__":
    sys.exit(main())

"""The `ftrace` command, which notes the shards that it writes and may be killed: several processes run it.

    python in_small_shards.py index ...

NOTES is a file that gets a line for each shard; KILL_AFTER lets the process kill itself at that line, when the shard is
written under its temporary name.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from ftrace.cli import main

NOTES = Path(os.environ["NOTES"])
KILL_AFTER = int(os.environ.get("KILL_AFTER", "-1"))
_replace = Path.replace


def replace(self: Path, target: Any) -> Path:
    if ".shard-" in self.name:
        if len(NOTES.read_text().splitlines()) == KILL_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        with NOTES.open("a") as notes:
            notes.write(f"{os.environ.get('LOCAL_RANK', '0')}\n")
    return _replace(self, target)


Path.replace = replace  # type: ignore[method-assign, assignment]

if __name__ == "__main__":
    sys.exit(main())

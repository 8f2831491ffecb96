"""The folder that a run writes to, and the run that it belongs to."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from ftrace.online.processes import gather_objects


class OutputFolder:
    """The output folder of one run, the same on all processes.

    All processes must make it at the same time.

    Args:
        path: The folder; process 0's counts.
        who: Who writes to it.
        holds: What it holds, such as ``"scores"``.

    Attributes:
        path: The folder, absolute.
        run_id: The run that writes to it; a new one unless it is set.
    """

    def __init__(self, path: Path, who: str, holds: str) -> None:
        self.path: Path = gather_objects(path.absolute())[0]
        self.run_id: str = gather_objects(uuid.uuid4().hex)[0]
        self._who = who
        self._holds = holds

    def beside(self, ending: str) -> Path:
        """A folder beside it, of its name and an ending."""
        return self.path.with_name(f"{self.path.name}-{ending}")

    def refuse_another_run(self, manifest: dict[str, Any] | None, more: str = "") -> None:
        """Refuse to write over what another run has left there.

        Args:
            manifest: What the folder's own manifest says; None if it has none.
            more: What else to say of the other run.

        Raises:
            ValueError: If it is another run's.
        """
        if manifest is not None and manifest.get("run_id") != self.run_id:
            raise ValueError(
                f"{self._who}: {str(self.path)!r} holds the {self._holds} of another run{more}. Name another "
                "output_dir, or move or delete the folder"
            )

"""The folder to which a run writes, and the id of the run."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from ftrace.files.claims import Claim
from ftrace.online.processes import gather_objects, process_rank


class OutputFolder:
    """The output folder of one run, the same on all processes.

    All processes must create it at the same time.

    Args:
        path: The folder; that of process 0 is taken.
        who: The writer, for messages.
        holds: What the folder holds, such as ``"scores"``, for messages.

    Attributes:
        path: The folder, absolute.
        run_id: The id of the run that writes to it: a new one, unless it is set.
    """

    def __init__(self, path: Path, who: str, holds: str) -> None:
        self.path: Path = gather_objects(path.absolute())[0]
        self.run_id: str = gather_objects(uuid.uuid4().hex)[0]
        self._who = who
        self._holds = holds
        self._claim: Claim | None = None

    def beside(self, ending: str) -> Path:
        """Return the path of a folder beside it, whose name is its own with an ending."""
        return self.path.with_name(f"{self.path.name}-{ending}")

    def claim(self) -> None:
        """Claim the folder for this run, until it is released. All processes must call it.

        Raises:
            ValueError: If somebody else has claimed it.
        """
        self._claim = claim_for_all(self.path, self._who)

    def release(self) -> None:
        """Let other runs in; nothing if that has been done."""
        if self._claim is not None:
            self._claim.release()

    def refuse_another_run(self, manifest: dict[str, Any] | None, more: str = "") -> None:
        """Refuse to overwrite the results of another run.

        Args:
            manifest: The manifest in the folder; None if it has none.
            more: Further words on the other run, for the message.

        Raises:
            ValueError: If the manifest is of another run.
        """
        if manifest is not None and manifest.get("run_id") != self.run_id:
            raise ValueError(
                f"{self._who}: {str(self.path)!r} holds the {self._holds} of another run{more}. Name another "
                "output_dir, or move or delete the folder"
            )


def claim_for_all(path: Path, who: str) -> Claim | None:
    """Claim a folder for all processes of a run, which must call it at the same time.

    Returns:
        The claim, on process 0; None on others.

    Raises:
        ValueError: On all processes, if somebody else has claimed it or nothing can be written there.
    """
    claim, problem = None, None
    if process_rank() == 0:
        try:
            claim = Claim(path, who)
        except (ValueError, OSError) as error:
            problem = str(error)
    (problem, *_) = gather_objects(problem)
    if problem is not None:
        raise ValueError(f"{who}: {problem}")
    return claim

"""The files of a snapshot: what its manifest says, and whether they are what was written.

Training writes snapshots, models and indexes read them, and none of these parts may import the other: so this is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ftrace.files.digests import DamagedError, FileFacts, FolderCheck
from ftrace.files.manifests import Form, read_manifest

MANIFEST = "snapshot.json"
WEIGHTS = "weights.safetensors"
SECOND_MOMENTS = "second_moments.safetensors"


class ParameterGroup(TypedDict):
    """A parameter group of an optimizer; parameters are named."""

    learning_rate: float
    settings: dict[str, Any]
    steps: dict[str, float]
    parameters: list[str]


OptimizerFacts = TypedDict("OptimizerFacts", {"class": str, "groups": list[ParameterGroup]})


class SnapshotFacts(TypedDict):
    """The manifest of a snapshot: ``tied`` names weights that are others under a second name."""

    step: int
    epoch: int
    tied: dict[str, str]
    optimizers: list[OptimizerFacts]
    files: NotRequired[dict[str, FileFacts]]


FORM = Form("ftrace-snapshot", 2, SnapshotFacts, "a snapshot")


def find_snapshots(folder: Path) -> list[Path]:
    """Find the snapshots in a folder, in the order of their steps.

    Raises:
        ValueError: If there are none.
    """
    folders = sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))
    if not folders:
        raise ValueError(
            f"no snapshot in {str(folder)!r}: expected step-*/snapshot.json. Train with CheckpointSnapshots"
        )
    return folders


class SnapshotFiles:
    """The files of a snapshot, each verified before it is handed out.

    Args:
        folder: The snapshot's.

    Attributes:
        facts: Its manifest.

    Raises:
        ValueError: If its manifest is missing, damaged, or of a newer ftrace.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = read_manifest(folder / MANIFEST, FORM)
        self._check = FolderCheck(folder, self.facts.get("files"))

    @property
    def weights(self) -> Path:
        """The file of its weights.

        Raises:
            DamagedError: If it is missing or not what was written.
        """
        return self._verified(WEIGHTS)

    @property
    def has_second_moments(self) -> bool:
        """Whether the optimizers had second moments."""
        return SECOND_MOMENTS in self._check.files or (self.folder / SECOND_MOMENTS).exists()

    @property
    def second_moments(self) -> Path | None:
        """The file of the optimizers' second moments; None if they had none.

        Raises:
            DamagedError: If it is missing or not what was written.
        """
        return self._verified(SECOND_MOMENTS) if self.has_second_moments else None

    def _verified(self, name: str) -> Path:
        self._check.check(name)
        file = self.folder / name
        if not file.is_file():  # of a snapshot of version 1, which notes no files
            raise DamagedError(f"{str(file)!r} is missing: copy it from where the snapshot came from")
        return file

    def check_all(self) -> Iterator[str]:
        """Read all its files, and yield the path of each that is what was written.

        Raises:
            DamagedError: If one isn't.
        """
        yield str(self.folder / MANIFEST)
        for name in self._check.check_all():
            yield str(self.folder / name)

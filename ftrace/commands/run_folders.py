"""Folders of runs that begin: each for one run alone, although Lightning's loggers choose numbers without asking."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from ftrace.files.claims import Claim, InUseError

_REMEDY = "name another version: --trainer.logger.version"


def claim_run_folders(loggers: Iterable[Any], claims: ExitStack) -> None:
    """Claim the folders to which loggers of files write, for the whole job.

    A logger that numbers its runs takes the next number that no run has and none is about to take; two that share a
    folder have the same number.

    Args:
        loggers: The trainer's.
        claims: Releases the claims when it is closed.

    Raises:
        ValueError: If another run writes to a folder that was named.
    """
    if getattr(rank_zero_only, "rank", 0):
        return
    folders: set[Path] = set()
    for logger in loggers:
        if isinstance(logger, CSVLogger | TensorBoardLogger):
            folders.add(_claim(logger, folders, claims))


def _claim(logger: CSVLogger | TensorBoardLogger, folders: set[Path], claims: ExitStack) -> Path:
    is_numbered = logger._version is None  # set for good as soon as it is asked for its version
    while True:
        folder = Path(logger.log_dir).absolute()
        if folder in folders:
            return folder
        try:
            claim = Claim(folder, "ftrace fit", _REMEDY)
        except InUseError:
            if not is_numbered:
                raise
        else:
            if not (is_numbered and folder.exists()):
                claims.callback(claim.release)
                _remove_dead_claims(folder.parent)
                return folder
            claim.release()  # a run that began and ended in between
        logger._version = int(logger.version) + 1


def _remove_dead_claims(folder: Path) -> None:
    """Remove the claims of runs that were killed: nobody takes their numbers again, and so nobody takes them over."""
    for file in folder.glob(".version_*.claim"):
        with suppress(InUseError, OSError):
            Claim(file.with_name(file.name.removeprefix(".").removesuffix(".claim")), "ftrace fit").release()

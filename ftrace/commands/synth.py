"""``ftrace synth``: FTRACE-SYNTH, generated."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from ftrace.console import PlainConsole
from ftrace.data import SynthSettings, write_synth


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument("--output_path", type=str, required=True, help="Folder to write the data set to.")
    command.add_class_arguments(SynthSettings)


def command(output_path: str, **settings: Any) -> None:
    """Generate FTRACE-SYNTH."""
    folder = write_synth(output_path, SynthSettings(**settings), progress=True)
    PlainConsole().print(f"Wrote FTRACE-SYNTH to {folder}", soft_wrap=True)

"""``ftrace synth``: FTRACE-SYNTH, generated."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from ftrace.arguments import Name, checked
from ftrace.console import PlainConsole
from ftrace.data import SynthSettings, write_synth
from ftrace.files.claims import claimed


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument("--output_path", type=str, required=True, help="Folder to write the data set to.")
    command.add_class_arguments(SynthSettings)


@checked
def command(output_path: Name, **settings: Any) -> None:
    """Generate FTRACE-SYNTH."""
    given = SynthSettings(**settings)
    with claimed(output_path, "ftrace synth", "name another output_path"):
        folder = write_synth(output_path, given, progress=True)
    PlainConsole().print(f"Wrote FTRACE-SYNTH to {folder}", soft_wrap=True)

"""The `ftrace` command in this process."""

from __future__ import annotations

from ftrace.cli import main


def code(*arguments: object) -> int:
    """The exit code of a command, also where the parser ends the process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)

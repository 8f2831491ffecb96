"""Lines of a table of checks: each figure beside its bound, and whether it is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Args:
        name: What is checked.
        figure: What was found.
        bound: What it must be.
        is_right: Whether it is.
    """

    name: str
    figure: str
    bound: str
    is_right: bool

    @property
    def verdict(self) -> str:
        """The word for whether it is right."""
        return "right" if self.is_right else "WRONG"


def print_lines(console: Console, lines: Sequence[Line]) -> int:
    """Print the table, and return the exit code: 1 if a line is wrong."""
    table = Table("check", "figure", "bound", "")
    for line in lines:
        table.add_row(line.name, line.figure, line.bound, line.verdict)
    console.print(table)
    return 0 if all(line.is_right for line in lines) else 1

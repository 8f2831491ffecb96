"""What a run on a GPU found, written to ``gpu.json`` and ``gpu.md`` as it comes, so that a run that is cut keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from checked_lines import Line
from rich.markup import escape


@dataclass(frozen=True)
class Finding:
    """A line of a part's table; a later one of the same name replaces it.

    Args:
        name: What was measured or checked.
        figures: By column, what was found.
        is_right: Of a check, whether it holds; None: nothing was checked.
        text: What doesn't fit into a table, shown below it.
    """

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    is_right: bool | None = None
    text: str = ""


class LeftOutError(Exception):
    """A check that can't be run here, and why."""


def in_short(error: Exception) -> str:
    """Say an error in a line.

    Raises:
        Exception: The error itself, if CUDA has failed: nothing else can run in the process then.
    """
    if "CUDA error" in str(error):
        raise error
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}"[:300]


def of_lines(lines: Iterable[Line]) -> Iterator[Finding]:
    """Take the lines of a table of checks for findings."""
    for line in lines:
        yield Finding(line.name, {"figure": line.figure, "bound": line.bound}, line.is_right)


@dataclass
class PartReport:
    """What came of a part.

    Args:
        status: "running", "done", "failed", "stopped" when its time was up, or "skipped".
        seconds: How long it took.
        findings: By name.
        error: Why it has failed, was stopped or skipped.
    """

    status: str = "running"
    seconds: float = 0.0
    findings: dict[str, Finding] = field(default_factory=dict)
    error: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it came to its end, and no check was wrong."""
        return self.status in ("done", "skipped") and all(one.is_right is not False for one in self.findings.values())


class Report:
    """All parts' reports, in two files that are whole after each finding.

    Args:
        folder: Where they are written.
        command: The command line that is run.
    """

    def __init__(self, folder: Path, command: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.about: dict[str, Any] = {"command": command}
        self.parts: dict[str, PartReport] = {}
        self._folder = folder

    def write(self) -> None:
        """Write both files; each replaces its former self at once."""
        whole = {"about": self.about, "parts": {name: asdict(part) for name, part in self.parts.items()}}
        self._put("gpu.json", json.dumps(whole, indent=1, default=str) + "\n")
        self._put("gpu.md", self.markdown())

    def markdown(self) -> str:
        """The tables."""
        parts = ["# Run on a GPU", *(f"- {name}: {value}" for name, value in self.about.items())]
        for name, part in self.parts.items():
            parts.append(f"\n## {name}: {part.status} after {part.seconds:.0f} s\n")
            parts += _table(list(part.findings.values()))
            texts = [*((one.name, one.text) for one in part.findings.values()), ("error", part.error)]
            parts += [f"\n{title}:\n\n```text\n{text.rstrip()}\n```" for title, text in texts if text]
        return "\n".join(parts) + "\n"

    def _put(self, name: str, text: str) -> None:
        temporary = self._folder / f"{name}.part"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._folder / name)


def shown(value: Any) -> str:
    """Write a figure as a person reads it: four digits, and all of a whole number."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def as_line(part: str, finding: Finding) -> str:
    """Write a finding as a line for the terminal."""
    figures = ", ".join(f"{name} {shown(value)}" for name, value in finding.figures.items())
    return escape(f"{part} | {finding.name} | {figures}{_verdict(finding)}")


def _verdict(finding: Finding) -> str:
    return {None: "", True: " | right", False: " | WRONG"}[finding.is_right]


def _table(findings: list[Finding]) -> list[str]:
    rows = [one for one in findings if one.figures or one.is_right is not None]
    if not rows:
        return []
    columns = list(dict.fromkeys(column for one in rows for column in one.figures))
    heads = ["", *columns, *([""] if any(one.is_right is not None for one in rows) else [])]
    lines = [heads, ["---"] * len(heads)]
    for one in rows:
        cells = [one.name, *(shown(one.figures.get(column, "")) for column in columns), _verdict(one).strip(" |")]
        lines.append(cells[: len(heads)])
    return [f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |" for cells in lines]

"""How help looks: two columns as everywhere, and examples that stay as they are."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from jsonargparse import DefaultHelpFormatter
from typing_extensions import override

_EXAMPLES = "examples:\n"
_COLUMN = 24  # where argparse begins to explain an option


class HelpFormatter(DefaultHelpFormatter):
    """The formatter of the option parser, which fills paragraphs, but leaves examples as they are."""

    @override
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


def examples_text(examples: Sequence[tuple[str, str]]) -> str:
    """Write examples: each a command line, and below it what it does."""
    return _EXAMPLES + "\n".join(f"  {command}\n      {what}" for command, what in examples)


def columns(options: Mapping[str, str]) -> str:
    """Write options and what they are, as argparse does."""
    lines = []
    for option, what in options.items():
        begin = f"  {option}"
        lines.append(begin if len(begin) > _COLUMN - 2 else "")
        indent = " " * _COLUMN
        filled = textwrap.fill(what, _width(), initial_indent=indent, subsequent_indent=indent)
        lines[-1] = f"{lines[-1]}\n{filled}" if lines[-1] else begin.ljust(_COLUMN) + filled.lstrip()
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """Write a paragraph, indented."""
    return textwrap.fill(text, _width(), initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _width() -> int:
    return max(60, shutil.get_terminal_size().columns - 2)

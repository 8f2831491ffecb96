"""The recipes that ship with ftrace, by name: ``--config synth_demo``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError  # type: ignore[attr-defined]  # missing from its __all__
from typing_extensions import override

from ftrace.source_tree import folder_of

_NAME = re.compile(r"\w[\w-]*(/\w[\w-]*)*")


def config_names() -> list[str]:
    """Return the names of all recipes, such as ``synth_demo`` and ``studies/answers``."""
    folder = folder_of("ftrace.configs")
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def config_file(given: str) -> str:
    """Return the path of a recipe, given its name; a path, or YAML itself, is returned as it is.

    Args:
        given: A file of that name in the working directory goes first.

    Raises:
        ValueError: If it has the form of a name and there is no such recipe.
    """
    if not _NAME.fullmatch(given) or Path(given).is_file():
        return given
    names = config_names()
    if given not in names:
        raise ValueError(f"expected a file or one of {', '.join(names)}, found {given!r}")
    return str(folder_of("ftrace.configs") / f"{given}.yaml")


class ConfigFileOrName(ActionConfigFile):
    """Option ``--config`` of a command: a path, or a recipe's name."""

    @override
    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            file = config_file(values)
        except ValueError as error:
            raise ArgumentError(self, str(error)) from error
        super().__call__(parser, cfg, file, option_string)

"""Public names of a package that are imported when they are first asked for.

Most parts of ftrace need torch, Lightning or transformers, which take seconds to import; the options of a command, its
help and its messages don't. So a package's file lists its names in a block that only type checkers run:

    if TYPE_CHECKING:
        from ftrace.data.text import fill_in
    else:
        __getattr__, __dir__ = late_names(__name__)

``from ftrace.data import fill_in`` works as ever; ``import ftrace.data`` imports none of the package's modules.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any


def late_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its full name.

    Returns:
        Functions that import a name of the block ``if TYPE_CHECKING`` of the package's file, and that list all names.
    """

    @cache
    def modules() -> dict[str, tuple[str, str]]:
        return _names_for_type_checkers(package)

    def get(name: str) -> Any:
        if name not in modules():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = modules()[name]
        value = getattr(importlib.import_module(module), original)
        setattr(sys.modules[package], name, value)  # from now on without this function
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules()})

    return get, names


def _names_for_type_checkers(package: str) -> dict[str, tuple[str, str]]:
    """Read the names that a package's file imports for type checkers: their modules, and their names there."""
    loader: Any = sys.modules[package].__loader__
    blocks = (
        node.body
        for node in ast.parse(loader.get_source(package)).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    return {
        alias.asname or alias.name: (str(node.module), alias.name)
        for block in blocks
        for node in block
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

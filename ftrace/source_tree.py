"""The folders of a clone that are installed inside the package but don't lie there.

``callbacks/`` and ``configs/`` stand at the top level of the repository and are installed as ``ftrace/callbacks`` and
``ftrace/configs``. Where Python runs with a clone as its working directory, it imports the clone's ``ftrace/`` even if
another one is installed, and that one has neither inside.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).parent


def folder_of(name: str) -> Path:
    """Return the folder of a part of the package, wherever it lies.

    Args:
        name: The part's full name, such as ``ftrace.configs``.
    """
    return _folders_elsewhere().get(name, _PACKAGE.joinpath(*name.split(".")[1:]))


class CloneFinder(MetaPathFinder):
    """Finder of the packages that a clone has outside ``ftrace/``.

    It knows them by their full names, so it never answers for a user's own folder ``callbacks/``, and needs no change
    of ``sys.path``.
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a package is, or None if it isn't one of those."""
        folder = self._folders.get(fullname)
        return None if folder is None else spec_from_file_location(fullname, folder / "__init__.py")


def import_from_clone() -> None:
    """Make a clone's packages importable; nothing happens in an installed ftrace.

    The finder goes first: an editable install of another clone has a finder of its own, which would mix the two.
    """
    packages = {name: folder for name, folder in _folders_elsewhere().items() if (folder / "__init__.py").is_file()}
    if packages and not any(isinstance(finder, CloneFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, CloneFinder(packages))


def _folders_elsewhere() -> dict[str, Path]:
    """Read from a clone's ``pyproject.toml`` which packages lie outside ``ftrace/``; empty for an installed ftrace."""
    file = _PACKAGE.with_name("pyproject.toml")
    if not file.is_file():
        return {}
    import tomllib  # an installed ftrace, which has no such file, is spared the import

    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if settings.get("project", {}).get("name") != "ftrace":  # this folder was copied into somebody's project
        return {}
    folders: dict[str, str] = settings["tool"]["setuptools"]["package-dir"]
    return {name: file.with_name(folder) for name, folder in folders.items()}

"""Files and folders that a manifest names, which lie in the folder that it describes and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path


def inside(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path:
    """Return the path of what a manifest, or another file of data, names in a folder.

    A folder that was received may name anything: ``../x``, an absolute path, or a symbolic link that leads out of it.

    Args:
        folder: The folder.
        name: The path in it.

    Raises:
        ValueError: If it isn't in the folder, or can't be the name of a file.

    Example:
        >>> inside("run", "snapshots/step-1").as_posix()
        'run/snapshots/step-1'
    """
    home = Path(folder)
    try:
        path = home / name
        real, real_home = path.resolve(), home.resolve()
        if real_home in real.parents:
            return path
    except (OSError, RuntimeError, TypeError, ValueError):  # a loop of links, no text, a null character
        pass
    raise ValueError(
        f"{str(home)!r} is damaged or foreign: expected names of what is in it, found {str(name)!r:.200}, which leads "
        "out of it. Copy the folder anew from where it came from, with files in place of links"
    )

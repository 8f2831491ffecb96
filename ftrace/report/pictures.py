"""Pictures on disk: written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure


def save_picture(figure: Figure, file: Path, dpi: int = 130) -> Path:
    """Write a figure; folders that are missing are made.

    Returns:
        The file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp{file.suffix}")
    figure.savefig(temporary, dpi=dpi)
    temporary.replace(file)
    return file

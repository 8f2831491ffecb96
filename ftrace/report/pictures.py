"""Writing pictures to disk, whole or not at all, the same bytes for the same picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ftrace.files.whole_files import whole_file

_FORMATS = (".png", ".pdf")
_WITHOUT_DATE: Mapping[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_DPI = 200


def save_picture(figure: Figure, file: Path) -> Path:
    """Write a figure without the date; missing folders are made. Call it in :func:`ftrace.report.style.look`.

    Returns:
        The path.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        format_of_file = file.suffix.removeprefix(".")
        metadata = _WITHOUT_DATE.get(format_of_file)
        figure.savefig(temporary, dpi=_DPI, format=format_of_file, metadata=metadata, facecolor="white")
    return file


def save_png_and_pdf(figure: Figure, file: Path) -> tuple[Path, Path]:
    """Write a figure as a PNG for screens and as a PDF for papers, in which text stays text.

    Args:
        file: Path of the files; an ending ``.png`` or ``.pdf`` is removed, and both are added.

    Returns:
        The paths, PNG first.
    """
    base = file.with_suffix("") if file.suffix in _FORMATS else file
    png, pdf = (save_picture(figure, base.with_name(base.name + ending)) for ending in _FORMATS)
    return png, pdf


def remove_pictures(folder: Path) -> None:
    """Remove all pictures in a folder, so that none of an earlier command remains."""
    for file in folder.glob("*"):
        if file.suffix in _FORMATS:
            file.unlink()

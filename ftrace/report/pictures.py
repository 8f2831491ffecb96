"""Writing pictures to disk, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from ftrace.whole_files import whole_file

_FORMATS = (".png", ".pdf")


def save_picture(figure: Figure, file: Path, dpi: int = 130) -> Path:
    """Write a figure; missing folders are made.

    Returns:
        The path.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        figure.savefig(temporary, dpi=dpi, format=file.suffix.removeprefix("."))
    return file


def save_png_and_pdf(figure: Figure, file: Path, dpi: int = 150) -> tuple[Path, Path]:
    """Write a figure as a PNG for screens and as a PDF for papers, in which text stays text.

    Args:
        file: Path of the files; an ending ``.png`` or ``.pdf`` is removed, and both are added.
        dpi: Dots per inch of the PNG.

    Returns:
        The paths, PNG first.
    """
    base = file.with_suffix("") if file.suffix in _FORMATS else file
    with rc_context({"pdf.fonttype": 42}):  # TrueType: publishers refuse the default, Type 3
        png, pdf = (save_picture(figure, base.with_name(base.name + ending), dpi) for ending in _FORMATS)
    return png, pdf


def remove_pictures(folder: Path) -> None:
    """Remove all pictures in a folder, so that none of an earlier command remains."""
    for file in folder.glob("*"):
        if file.suffix in _FORMATS:
            file.unlink()

"""Pictures on disk: written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from ftrace.whole_files import whole_file

_FORMATS = (".png", ".pdf")


def save_picture(figure: Figure, file: Path, dpi: int = 130) -> Path:
    """Write a figure; folders that are missing are made.

    Returns:
        The file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        figure.savefig(temporary, dpi=dpi, format=file.suffix.removeprefix("."))
    return file


def save_png_and_pdf(figure: Figure, file: Path, dpi: int = 150) -> tuple[Path, Path]:
    """Write a figure in both formats: one for screens, one for papers, whose text stays text.

    Args:
        figure: The figure.
        file: Where it goes; an ending ``.png`` or ``.pdf`` is left out, and both are added.
        dpi: Dots per inch of the PNG.

    Returns:
        The files, PNG first.
    """
    base = file.with_suffix("") if file.suffix in _FORMATS else file
    with rc_context({"pdf.fonttype": 42}):  # TrueType: publishers refuse the default, Type 3
        png, pdf = (save_picture(figure, base.with_name(base.name + ending), dpi) for ending in _FORMATS)
    return png, pdf


def remove_pictures(folder: Path) -> None:
    """Remove the pictures in a folder of nothing but pictures, so that those of an earlier command don't stay."""
    for file in folder.glob("*"):
        if file.suffix in _FORMATS:
            file.unlink()

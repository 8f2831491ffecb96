"""Writing a report: one file that opens by double-click, or a folder if it is too large for one.

Chunks are written as they come, so that only one is in memory. The report takes its place at the end, whole or not at
all, and replaces nothing but an earlier report.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ftrace.files.claims import claimed
from ftrace.files.whole_files import put_folder, temporary_folder, whole_file
from ftrace.report.explorer.page.chunks import (
    HEAD,
    chunk_script,
    encode_chunk,
    encoded_in_script,
    is_chunk_name,
    island,
)
from ftrace.report.explorer.page.page import is_report, page

MAX_FILE_BYTES = 20_000_000
MAX_FOLDER_BYTES = 500_000_000
INDEX = "index.html"
CHUNKS = "chunks"
_ENDING = ".html"


def write_report(
    out: str | os.PathLike[str],
    chunks: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    title: str,
    single_file: bool | None = None,
) -> Path:
    """Write a report whole or not at all.

    Args:
        out: Its path, with or without the ending ``.html``, which a file has and a folder hasn't. An earlier report of
            this path is replaced, whichever form it has.
        chunks: Names and contents, as ``format.py`` says; one of them is called "head".
        title: What the browser calls the page.
        single_file: Whether it is one file or a folder; default: one file of up to :data:`MAX_FILE_BYTES`, else a
            folder.

    Returns:
        What to open: the file, or the folder's ``index.html``.

    Raises:
        ValueError: If anything but an earlier report is in its place, which is looked at before a chunk is asked for,
            or if the report is too large.
    """
    check_place(out, single_file=single_file)
    folder, file = report_paths(out)
    with claimed(folder, "ftrace report", "name another path"), temporary_folder(folder) as temporary:
        (temporary / CHUNKS).mkdir()
        size = len("".join(page(title, in_one_file=True)).encode())
        names: list[str] = []
        for name, chunk in chunks:
            assert is_chunk_name(name), f"a chunk can't be called {name!r}"
            assert name not in names, f"two chunks are called {name!r}"
            names.append(name)
            encoded = encode_chunk(chunk)
            size += len(island(name, encoded))
            _check_size(size, single_file)
            (temporary / CHUNKS / f"{name}.js").write_text(chunk_script(name, encoded), encoding="ascii", newline="\n")
        assert HEAD in names, "a report has a head"
        if single_file or (single_file is None and size <= MAX_FILE_BYTES):
            _put_file(file, title, temporary / CHUNKS, names)
            if _is_report_folder(folder):  # an earlier one that was larger
                _remove_folder(folder)
            return file
        (temporary / INDEX).write_text("".join(page(title, in_one_file=False)), encoding="utf-8", newline="\n")
        put_folder(temporary, folder)
        if file.is_file() and is_report(file):  # an earlier one that was smaller
            file.unlink()
        return folder / INDEX


def check_place(out: str | os.PathLike[str], *, single_file: bool | None = None) -> None:
    """Make sure that a report can be written, and would replace nothing but an earlier report.

    Args:
        out: As in :func:`write_report`.
        single_file: Likewise.

    Raises:
        ValueError: If anything else is in its place, or nothing can be written there.
    """
    folder, file = report_paths(out)
    _check_parent(file if single_file else folder)
    if single_file is not False:
        _check_file(file)
    if single_file is not True:
        _check_folder(folder)


def report_paths(out: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return the paths of a report as a folder and as one file.

    Raises:
        ValueError: If the path has no name of its own, such as "." and ".html".

    Example:
        >>> [path.as_posix() for path in report_paths("runs/a/report.html")]
        ['runs/a/report', 'runs/a/report.html']
    """
    path = Path(out)
    if path.name in ("", "..", _ENDING):
        raise ValueError(f"out: expected the name of a file that ends in {_ENDING}, or of a folder, found {str(out)!r}")
    return (path.with_suffix(""), path) if path.suffix == _ENDING else (path, path.with_name(path.name + _ENDING))


def _put_file(file: Path, title: str, chunks: Path, names: Iterable[str]) -> None:
    before, after = page(title, in_one_file=True)
    with whole_file(file) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(before)
        for name in names:
            script = (chunks / f"{name}.js").read_text(encoding="ascii")
            stream.write(island(name, encoded_in_script(script)))
        stream.write(after)


def _check_size(size: int, single_file: bool | None) -> None:
    limit = MAX_FILE_BYTES if single_file else MAX_FOLDER_BYTES
    if size > limit:
        form, other = ("one file", ", or write a folder") if single_file else ("a folder", "")
        raise ValueError(
            f"expected a report of up to {limit / 1e6:,.0f} MB as {form}, found more. Choose fewer queries, list fewer "
            f"examples of each{other}."
        )


def _remove_folder(folder: Path) -> None:
    """Remove an earlier report; of a link only the link."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def _check_parent(place: Path) -> None:
    """Make sure that the folder of a place is there or can be made, before a report takes its time."""
    try:
        parent = next(parent for parent in place.resolve().parents if parent.exists())
    except (OSError, RuntimeError) as error:  # a circle of links
        raise ValueError(f"won't write a report to {str(place)!r}: {error}") from error
    if parent.is_dir() and os.access(parent, os.W_OK):
        return
    problem = "can't be written to" if parent.is_dir() else "is a file"
    raise ValueError(f"won't write a report to {str(place)!r}: {str(parent)!r} {problem}. Name another path.")


def _check_file(file: Path) -> None:
    if file.exists() and not (file.is_file() and is_report(file)):
        raise ValueError(
            f"won't write a report to {str(file)!r}: expected nothing or an earlier report there, but it is another "
            f"{'file' if file.is_file() else 'folder'}. Name another path."
        )


def _check_folder(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not _is_report_folder(folder):
        problem = "the folder holds other files"
    elif folder.exists() and not folder.is_dir():
        problem = "it is a file"
    elif folder.resolve() == Path.cwd():
        problem = "it is the working directory"
    else:
        return
    raise ValueError(
        f"won't write a report to {str(folder)!r}: expected nothing or an earlier report there, but {problem}. Name "
        "another path."
    )


def _is_report_folder(folder: Path) -> bool:
    """Return whether a folder holds a report and nothing else."""
    index, chunks = folder / INDEX, folder / CHUNKS
    if not index.is_file() or not is_report(index) or not chunks.is_dir():
        return False
    return set(folder.iterdir()) == {index, chunks} and all(
        file.suffix == ".js" and is_chunk_name(file.stem) for file in chunks.iterdir()
    )

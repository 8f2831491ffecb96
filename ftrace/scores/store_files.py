"""The files of a score store: their names, its manifest, and what may be replaced.

See :mod:`ftrace.scores.store` for what is in them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftrace.files.whole_files import whole_file
from ftrace.scores.ledger import FILE
from ftrace.scores.sums import Sum
from ftrace.scores.texts import Texts, check_texts

FORMAT = "ftrace-scores"
VERSION = 1
MANIFEST = "manifest.json"
LEDGER = FILE
EXAMPLES, QUERIES = "examples.parquet", "queries.parquet"
_ARRAYS = ("example_ids", "query_ids", "example_names", "query_names", "candidate_ids", "candidate_offsets")
_LONGEST_KIND = 100


def write_texts(
    folder: Path, examples: Texts | None, example_ids: np.ndarray, queries: Texts | None, query_ids: np.ndarray
) -> None:
    """Write the texts of a store's ids into a folder; None writes nothing."""
    check_texts(examples, queries)
    for name, texts, ids in ((EXAMPLES, examples, example_ids), (QUERIES, queries, query_ids)):
        if texts is not None:
            with whole_file(folder / name) as temporary:
                texts.write(temporary, ids)


def parts_of(keys: Iterable[Sum]) -> dict[str, list[str]]:
    """Return the axes that kinds are broken down by, and the names of the parts of each in their order."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        if key.axis and key.part not in parts.setdefault(key.axis, []):
            parts[key.axis].append(key.part)
    return parts


def make_facts(
    keys: Sequence[Sum], example_ids: np.ndarray, query_ids: np.ndarray, dtype: np.dtype | None = None
) -> dict[str, Any]:
    """Make the entries that the manifest of every store has."""
    kinds = [key.kind for key in keys if not key.axis]
    return {
        "format": FORMAT,
        "version": VERSION,
        "kinds": kinds,
        "breakdown": parts_of(keys),
        "num_examples": len(example_ids),
        "num_queries": len(query_ids),
        "num_pairs": None,
        "dtype": {kind: str(dtype) for kind in kinds},
    }


def check_kinds(kinds: Iterable[str]) -> None:
    """Make sure that each kind can be the name of a file of its own.

    Raises:
        ValueError: If one is empty, no file can be called so, or the store has another file of that name.
    """
    for kind in kinds:
        is_text = isinstance(kind, str) and kind.isprintable()  # so without null bytes and halves of characters
        if not is_text or not 0 < len(kind) <= _LONGEST_KIND or kind in _ARRAYS or {"/", "\\"} & set(kind):
            raise ValueError(
                f"expected kinds of scores that can be names of files, none of {', '.join(_ARRAYS)}, found {kind!r:.80}"
            )


def file_name(key: Sum, parts: Mapping[str, Sequence[str]]) -> str:
    """Return the name of a matrix's file, without its ending."""
    return f"{key.kind}.{key.axis}.{parts[key.axis].index(key.part):04d}" if key.axis else key.kind


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Make sure that writing a store here would replace nothing but an earlier store.

    Raises:
        ValueError: If the path is a file, the working directory, or a folder that holds anything but a score store.
    """
    folder = Path(path).resolve()
    try:
        if folder == Path.cwd():
            raise ValueError("it is the working directory")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
        if not folder.is_dir():
            raise ValueError("it is a file")
        read_manifest(folder)
        ours = (MANIFEST, LEDGER, EXAMPLES, QUERIES)
        foreign = [file.name for file in folder.iterdir() if file.suffix != ".npy" and file.name not in ours]
        if foreign:
            raise ValueError(f"it also holds {sorted(foreign)[0]!r}")
    except ValueError as error:
        message = (
            f"won't write scores to {str(folder)!r}: expected nothing or an earlier score store there, but {error}"
        )
        raise ValueError(f"{message}. Name another folder.") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a store's manifest.

    Raises:
        ValueError: If the folder is not a score store, or one of another version.
    """
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} is not a score store: can't read its {MANIFEST} ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{str(folder)!r} is not a score store: its {MANIFEST} doesn't say format {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{str(folder)!r} is a score store of version {manifest.get('version')}, and this ftrace reads {VERSION}"
        )
    missing = {"kinds", "num_examples", "num_queries"} - manifest.keys()
    if missing:
        raise ValueError(f"{str(folder)!r} is a damaged score store: its {MANIFEST} lacks {sorted(missing)}")
    for entry, kind in (("kinds", list), ("num_examples", int), ("num_queries", int), ("doubts", dict)):
        if not isinstance(manifest.get(entry, kind()), kind):
            raise ValueError(
                f"{str(folder)!r} is a damaged score store: expected {kind.__name__} under {entry!r} in its "
                f"{MANIFEST}, found {manifest[entry]!r:.80}"
            )
    return manifest

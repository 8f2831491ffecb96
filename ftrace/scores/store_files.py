"""The files of a score store: their names, its manifest, and what may be replaced.

See :mod:`ftrace.scores.store` for what is in them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
from msgspec import Meta

from ftrace.files import manifests
from ftrace.files.digests import DamagedError, FileFacts, facts_of_files
from ftrace.files.whole_files import whole_file
from ftrace.scores.answer_record import RIGHT_FILE, STEPS_FILE
from ftrace.scores.ledger import FILE
from ftrace.scores.sums import Sum
from ftrace.scores.texts import Texts, check_texts

FORMAT = "ftrace-scores"
MANIFEST = "manifest.json"
LEDGER = FILE
EXAMPLE_IDS = "example_ids.npy"
EXAMPLES, QUERIES = "examples.parquet", "queries.parquet"
_ARRAYS = (
    "example_ids", "query_ids", "example_names", "query_names", "candidate_ids", "candidate_offsets", STEPS_FILE,
    RIGHT_FILE,
)  # fmt: skip
_LONGEST_KIND = 100

_Count = Annotated[int, Meta(ge=0)]


class LedgerFacts(TypedDict):
    """What a manifest says of the store's ledger."""

    summary: NotRequired[str]
    fall: NotRequired[float]
    shares: NotRequired[dict[str, float]]
    worst_imbalance: NotRequired[float | None]
    balanced: NotRequired[bool | None]


class StoreFacts(TypedDict):
    """The entries of a store's manifest that readers rely on. Its writer adds others as it likes."""

    kinds: list[str]
    num_examples: _Count
    num_queries: _Count
    num_pairs: NotRequired[_Count | None]
    num_evaluations: NotRequired[_Count | None]
    breakdown: NotRequired[dict[str, list[str]]]
    dtype: NotRequired[dict[str, Literal["float32", "float64"]]]
    doubts: NotRequired[dict[str, list[str]]]
    ledger: NotRequired[LedgerFacts | None]
    complete: NotRequired[bool]
    files: NotRequired[dict[str, FileFacts]]


FORM = manifests.Form(FORMAT, 2, StoreFacts, "a score store")


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
        "kinds": kinds,
        "breakdown": parts_of(keys),
        "num_examples": len(example_ids),
        "num_queries": len(query_ids),
        "num_pairs": None,
        "dtype": {kind: str(dtype) for kind in kinds},
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the manifest of a store whose other files are there.

    Args:
        folder: The store's folder, or the one that becomes it.
        manifest: What the store's writer notes.
        facts: What :func:`make_facts` returns.

    Raises:
        ValueError: If JSON can't hold it, or an entry that readers rely on is of another type.
    """
    content = {**manifest, **facts, "files": facts_of_files(folder)}
    manifests.write_manifest(folder / MANIFEST, FORM, content)


def take_over(store: Path, folder: Path) -> None:
    """Put a store's other files beside new ones, as hard links where there can be any, and note the new ones.

    Args:
        store: The store's folder.
        folder: The folder with the new files, which becomes the store.
    """
    new = sorted(file.name for file in folder.iterdir())
    for file in store.iterdir():
        if file.is_dir():
            shutil.copytree(file, folder / file.name)
        elif file.name not in new and file.name != MANIFEST:
            try:
                os.link(file, folder / file.name)
            except OSError:
                shutil.copy2(file, folder / file.name)
    manifest = read_manifest(store)
    if "files" in manifest:
        manifest["files"] |= facts_of_files(folder, new)
        manifests.write_manifest(folder / MANIFEST, FORM, manifest)
    else:  # of version 1, whose other files nobody has noted
        shutil.copy2(store / MANIFEST, folder / MANIFEST)


def check_kinds(kinds: Iterable[str]) -> None:
    """Make sure that each kind can be the name of a file of its own.

    Raises:
        ValueError: If one is empty, no file can be called so, or the store has another file of that name.
    """
    for kind in kinds:
        if not isinstance(kind, str) or not kind.isprintable() or kind in _ARRAYS or not _can_be_in_name(kind):
            raise ValueError(
                f"expected kinds of scores that can be names of files, none of {', '.join(_ARRAYS)}, found {kind!r:.80}"
            )


def check_offsets(offsets: np.ndarray, queries: int, pairs: int) -> None:
    """Make sure that offsets say where each query's candidates begin.

    Args:
        offsets: ``[Q + 1]``.
        queries: Q.
        pairs: How many candidates all queries have.

    Raises:
        ValueError: If they are not whole numbers that ascend from 0 to the number of pairs.
    """
    if offsets.shape != (queries + 1,) or offsets.dtype.kind not in "iu":
        raise ValueError(
            f"expected candidate_offsets of whole numbers, [{queries + 1}], found {offsets.dtype} {list(offsets.shape)}"
        )
    if offsets[0] != 0 or offsets[-1] != pairs or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"expected candidate_offsets that ascend from 0 to {pairs:,}, the number of pairs")


def _can_be_in_name(word: object) -> bool:
    return isinstance(word, str) and 0 < len(word) <= _LONGEST_KIND and not any(sign in word for sign in "/\\\0")


def file_name(key: Sum, parts: Mapping[str, Sequence[str]]) -> str:
    """Return the name of a matrix's file, without its ending."""
    return f"{key.kind}.{key.axis}.{parts[key.axis].index(key.part):04d}" if key.axis else key.kind


def check_names(keys: Iterable[Sum], parts: Mapping[str, Sequence[str]]) -> None:
    """Make sure that each matrix has a file of its own.

    Raises:
        ValueError: If two have the same one.
    """
    key_of: dict[str, Sum] = {}
    for key in keys:
        other = key_of.setdefault(file_name(key, parts), key)
        if other != key:
            raise ValueError(
                f"{file_name(key, parts)!r} would be the same file for {tuple(other)} and {tuple(key)}. Name the kind "
                "or the axis otherwise"
            )


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
        raise ValueError(f"{message}. Name another folder, or move or delete this one") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a store's manifest.

    Raises:
        ValueError: If the folder is not a score store, or one of a newer version.
        DamagedError: If the manifest is damaged.
    """
    manifest = manifests.read_manifest(folder / MANIFEST, FORM)
    kinds, axes = manifest["kinds"], list(manifest.get("breakdown", {}))
    try:
        check_kinds(kinds)
        if len(set(kinds)) < len(kinds) or not all(map(_can_be_in_name, axes)):
            raise ValueError(f"expected kinds, each once, and axes that can be names of files, found {kinds}, {axes}")
    except ValueError as error:
        raise DamagedError(f"{str(folder / MANIFEST)!r} is damaged: {error}") from error
    return manifest

"""Tables of data that are mapped into memory: Arrow copies of Parquet files, made once.

They are in the folder ``arrow`` beside the Parquet files. Its manifest notes of which files they are copies, and their
digests; copies of other files, or damaged ones, are made anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ftrace.data.data_folder import MANIFEST
from ftrace.files.digests import DamagedError, FileFacts, FolderCheck, facts_of_files
from ftrace.files.manifests import DIGEST, read_json, write_json
from ftrace.files.whole_files import whole_folder
from ftrace.shown_text import one_line

_FOLDER, _MANIFEST = "arrow", "manifest.json"
_ROWS_AT_A_TIME = 10_000


class _DataFiles(TypedDict):
    files: dict[str, FileFacts]


class _CopiesFacts(TypedDict):
    of: dict[str, FileFacts]
    files: dict[str, FileFacts]


class MappedTables:
    """The tables of a folder of data.

    Args:
        folder: The folder, with a Parquet file for each table. Where it can't be written to, since the data are
            other people's, copies are made in the user's own cache.
        names: The tables' names.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._parquet = folder
        self._names = names

    def are_made(self) -> bool:
        """Return whether there are copies of the Parquet files that are there now."""
        return self._whole_copies() is not None

    def make(self) -> None:
        """Make the copies, unless they are there. One process does it, before others open them.

        Raises:
            ValueError: If a Parquet file is damaged or can't be read.
        """
        if self.are_made():
            return
        shared, own = self._places()
        with whole_folder(shared if os.access(self._parquet, os.W_OK) else own) as temporary:
            for name in self._names:
                FolderCheck(self._parquet, self._noted()).check(f"{name}.parquet", at_once=True)
                _copy(self._parquet / f"{name}.parquet", temporary / f"{name}.arrow")
            write_json(temporary / _MANIFEST, {"of": self._of(), "files": facts_of_files(temporary)})

    def open(self, name: str) -> datasets.Dataset:
        """Map a table into memory.

        Raises:
            ValueError: If there are no copies, or they are damaged.
        """
        copies = self._whole_copies()
        if copies is None:
            raise ValueError(f"{str(self._parquet)!r} isn't prepared, or damaged: call prepare_data() before setup()")
        return datasets.Dataset.from_file(str(copies / f"{name}.arrow"))

    def _places(self) -> tuple[Path, Path]:
        """Return where copies may be: beside the files, and in the user's own cache."""
        key = hashlib.sha256(str(self._parquet.resolve()).encode()).hexdigest()[:16]
        return self._parquet / _FOLDER, Path(datasets.config.HF_DATASETS_CACHE) / "ftrace" / key

    def _whole_copies(self) -> Path | None:
        for place in self._places():
            with suppress(OSError, DamagedError):
                facts = read_json(place / _MANIFEST, _CopiesFacts)
                if facts["of"] == self._of():
                    check = FolderCheck(place, facts["files"])
                    for name in self._names:
                        check.check(f"{name}.arrow")
                    return place
        return None

    def _of(self) -> dict[str, FileFacts | None]:
        names, noted = [f"{name}.parquet" for name in self._names], self._noted()
        return (
            dict(facts_of_files(self._parquet, names)) if noted is None else {name: noted.get(name) for name in names}
        )

    def _noted(self) -> dict[str, FileFacts] | None:
        """Return what the data's manifest notes; None if it is of an older version, another kind, or not there."""
        manifest = self._parquet / MANIFEST
        content = read_json(manifest, dict[str, Any], digest=False) if manifest.exists() else {}
        return read_json(manifest, _DataFiles)["files"] if DIGEST in content else None


def _copy(parquet: Path, arrow: Path) -> None:
    try:
        with (
            pq.ParquetFile(parquet.absolute()) as source,  # a relative path with a colon is taken for a URI
            pa.OSFile(str(arrow), "wb") as sink,
            pa.ipc.new_stream(sink, source.schema_arrow) as writer,
        ):
            for batch in source.iter_batches(_ROWS_AT_A_TIME):
                writer.write_batch(batch)
    except (OSError, pa.ArrowException) as error:
        raise DamagedError(
            f"{str(parquet)!r} can't be read ({one_line(str(error))}): delete its folder, and it is made anew"
        ) from error

"""Tables of data that are mapped into memory: Arrow copies of Parquet files, made once.

They are in the folder ``arrow`` beside the Parquet files. Its manifest notes of which files they are copies, and their
digests; copies of other files, or damaged ones, are made anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ftrace.files.digests import DamagedError, FileFacts, FolderCheck, facts_of_files
from ftrace.files.manifests import read_json, write_json
from ftrace.files.whole_files import whole_folder

_FOLDER, _MANIFEST = "arrow", "manifest.json"
_ROWS_AT_A_TIME = 10_000


class _CopiesFacts(TypedDict):
    of: dict[str, FileFacts]
    files: dict[str, FileFacts]


class MappedTables:
    """The tables of a folder of data.

    Args:
        folder: The folder, with a Parquet file for each table.
        names: The tables' names.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._parquet = folder
        self._copies = folder / _FOLDER
        self._names = names

    def make(self, noted: Mapping[str, FileFacts] | None) -> None:
        """Make the copies, unless they are there. One process does it, before others open them.

        Args:
            noted: What is noted of the Parquet files; None if nothing is.

        Raises:
            ValueError: If a Parquet file is damaged or can't be read.
        """
        names = [f"{name}.parquet" for name in self._names]
        of = facts_of_files(self._parquet, names) if noted is None else {name: noted.get(name) for name in names}
        with suppress(OSError, DamagedError):
            facts = read_json(self._copies / _MANIFEST, _CopiesFacts)
            if facts["of"] == of:
                check = FolderCheck(self._copies, facts["files"])
                for name in self._names:
                    check.check(f"{name}.arrow")
                return
        with whole_folder(self._copies) as temporary:
            for name in self._names:
                FolderCheck(self._parquet, noted).check(f"{name}.parquet", at_once=True)
                _copy(self._parquet / f"{name}.parquet", temporary / f"{name}.arrow")
            write_json(temporary / _MANIFEST, {"of": of, "files": facts_of_files(temporary)})

    def open(self, name: str) -> datasets.Dataset:
        """Map a table into memory.

        Raises:
            ValueError: If its copy is missing or damaged.
        """
        try:
            facts = read_json(self._copies / _MANIFEST, _CopiesFacts)
            FolderCheck(self._copies, facts["files"]).check(f"{name}.arrow")
        except OSError as error:
            raise ValueError(
                f"{str(self._copies)!r} can't be read ({error.strerror}): expected prepare_data() to have run"
            ) from error
        return datasets.Dataset.from_file(str(self._copies / f"{name}.arrow"))


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
            f"{str(parquet)!r} can't be read ({error}): delete its folder, and it is made anew"
        ) from error

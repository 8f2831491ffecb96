"""Sources of FTRACE-TREX: the Hugging Face hub, a folder of the same files, or the sample that ships with ftrace.

The hub's repository ``ekinakyurek/ftrace`` holds a loading script and no data, and newer versions of ``datasets`` run
no scripts. But the hub keeps the rows of every data set as Parquet files in the branch ``refs/convert/parquet``, here
as ``abstracts/train/*.parquet`` and ``queries/train/*.parquet``. These are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import datasets

from ftrace.data.row_files import SUFFIXES, SourceRow, hash_of_files, read_rows

Part = Literal["abstracts", "queries"]
SAMPLE = "sample"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_ROWS_AT_A_TIME = 10_000


@dataclass(frozen=True)
class TrexFolder:
    """Source in a folder.

    Args:
        name: The folder's name in errors.
        files: Files of both parts, in order.
    """

    name: str
    files: dict[Part, list[Path]]

    def rows(self, part: Part) -> Iterator[SourceRow]:
        """Yield the rows of a part, file by file."""
        for file in self.files[part]:
            yield from read_rows(file)

    def key(self) -> str:
        """Hash the files' content."""
        return hash_of_files([*self.files["abstracts"], *self.files["queries"]], "folder")


@dataclass(frozen=True)
class TrexOnHub:
    """Source on the hub.

    Args:
        name: ``owner/name``.
    """

    name: str

    def rows(self, part: Part) -> Iterator[SourceRow]:
        """Yield the rows of a part, downloaded once and then read from the cache of ``datasets``.

        Raises:
            ValueError: If there is no such data set, no network, or no Parquet files.
        """
        pattern = f"hf://datasets/{self.name}@refs%2Fconvert%2Fparquet/{part}/train/*.parquet"
        try:
            table = datasets.load_dataset("parquet", data_files=pattern, split="train")
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"source: can't read {self.name!r} from the Hugging Face hub ({type(error).__name__}: {error}). "
                "Without a network, give a folder with abstracts*.jsonl or .parquet and queries*.jsonl or .parquet, or "
                f'"{SAMPLE}"'
            ) from error
        batches = table.with_format("arrow").iter(_ROWS_AT_A_TIME)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            fields = {name: value for name, value in row.items() if value is not None}
            yield SourceRow(f"{self.name}, {part}", number, fields)

    def key(self) -> str:
        """Hash the name."""
        return hash_of_files([], "hub", self.name)


def open_trex(source: str) -> TrexFolder | TrexOnHub:
    """Find FTRACE-TREX.

    Args:
        source: "sample", a folder with files ``abstracts*`` and ``queries*`` (or folders of these names, as on the
            hub) in JSON lines, JSON or Parquet, or a data set on the hub. A folder goes before a name on the hub.

    Raises:
        ValueError: If it is none of these, or the folder lacks files.
    """
    if source == SAMPLE:
        folder = Path(str(files("ftrace.data") / "samples" / "trex"))
    elif Path(source).is_dir():
        folder = Path(source).absolute()  # the working directory may change before it is read
    elif _HUB_NAME.fullmatch(source):
        return TrexOnHub(source)
    else:
        raise ValueError(
            f'source: expected "{SAMPLE}", a folder, or a data set on the Hugging Face hub such as '
            f'"ekinakyurek/ftrace", found {source!r}'
        )
    return TrexFolder(source, {"abstracts": _files(folder, "abstracts"), "queries": _files(folder, "queries")})


def _files(folder: Path, part: Part) -> list[Path]:
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name.endswith(SUFFIXES) and path.relative_to(folder).parts[0].startswith(part)
    ]
    if not paths:
        there = sorted(path.name for path in folder.iterdir())[:10]
        raise ValueError(f"source: expected {part}*{{{','.join(SUFFIXES)}}} in {str(folder)!r}, found {there}")
    return paths

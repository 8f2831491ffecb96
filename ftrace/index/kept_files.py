"""What is computed of a segment and kept beside its index, such as norms of rows: it can be made anew at any time.

Beside each file, ``FILE.json`` notes its size and digest and the segment that it is of. A file that is anything else is
no error: it is made anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from ftrace.files.digests import DamagedError, FileFacts, FolderCheck, facts_of_file, facts_of_files
from ftrace.files.inside import inside
from ftrace.files.manifests import read_json, write_json
from ftrace.files.whole_files import whole_file
from ftrace.index.segment import Segment
from ftrace.index.segment_facts import SEGMENT


class _KeptFacts(TypedDict):
    segment: str
    files: dict[str, FileFacts]


def is_kept(file: Path, segment: Segment, *, at_once: bool = True) -> bool:
    """Return whether a file is there, is what was written, and is of a segment.

    Args:
        file: The file.
        segment: The segment.
        at_once: Whether to digest a large file now; otherwise in the background of its use.
    """
    with suppress(OSError, DamagedError):
        facts = read_json(_note(file), _KeptFacts)
        FolderCheck(file.parent, facts["files"]).check(file.name, at_once=at_once)
        return bool(facts["segment"] == _digest(segment))
    return False


@contextmanager
def keep(file: Path, segment: Segment) -> Iterator[Path]:
    """Write a file that is computed of a segment, and its note: yield a temporary path to be written to.

    Raises:
        OSError: If it can't be written.
        ValueError: If a link leads out of the index.
    """
    inside(file.parent.parent, Path(file.parent.name, file.name))
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as temporary:
        yield temporary
    write_json(_note(file), {"segment": _digest(segment), "files": facts_of_files(file.parent, [file.name])})


def _note(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _digest(segment: Segment) -> str:
    return facts_of_file(segment.folder / SEGMENT)["xxh3_128"]

"""What is noted of a segment of an index: when it begins, and when it is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ftrace.files.digests import DamagedError, FileFacts, FolderCheck, facts_of_files
from ftrace.files.manifests import Form, read_json, read_manifest, write_json
from ftrace.index.shards import PATTERN

BEGUN, SEGMENT = "begun.json", "segment.json"
PRECONDITIONERS = "preconditioners.safetensors"


class NotedShard(TypedDict):
    """A shard, as its segment's manifest notes it."""

    file: str
    rows: int
    checksum: int
    bytes: int


class _Common(TypedDict):
    step: int
    rows: int
    examples: int
    shards: list[NotedShard]
    snapshot: NotRequired[str]
    fingerprint: NotRequired[str]
    index: NotRequired[str]


class SegmentFacts(_Common):
    """The manifest of a segment, as far as readers rely on it."""

    files: dict[str, FileFacts]


class _OldSegmentFacts(_Common):
    """The same before version 2, which noted checksums of some files."""

    files: dict[str, int]


class BegunFacts(TypedDict):
    """What is noted of a segment when it begins."""

    epoch: int
    files: NotRequired[dict[str, FileFacts]]


FORM = Form("ftrace-index-segment", 2, SegmentFacts, "a segment of an index", schema_without_format=_OldSegmentFacts)


def read_facts(folder: Path) -> dict[str, Any]:
    """Read the manifest of a segment.

    Raises:
        ValueError: If it isn't finished, is damaged, or of a newer ftrace.
    """
    if not (folder / SEGMENT).exists():
        raise ValueError(
            f"segment {str(folder)!r} is not finished: it has no {SEGMENT}. Give the command that wrote it again"
        )
    facts = read_manifest(folder / SEGMENT, FORM)
    for shard in facts["shards"]:
        if Path(shard["file"]).name != shard["file"] or not Path(shard["file"]).match(PATTERN) or shard["rows"] < 0:
            raise DamagedError(f"segment {str(folder)!r} is damaged: it names {shard['file']!r:.80} as a shard")
    if sum(shard["rows"] for shard in facts["shards"]) != facts["rows"]:
        raise DamagedError(
            f"segment {str(folder)!r} is damaged: its shards don't have the {facts['rows']} rows it says"
        )
    return facts


def is_verified(facts: dict[str, Any]) -> bool:
    """Return whether a manifest notes the digests of all files: those of older versions don't."""
    return "format" in facts


def write_begun(folder: Path, epoch: int) -> None:
    """Note the epoch of a segment that begins, and the preconditioners with which its rows are made."""
    write_json(folder / BEGUN, {"epoch": epoch, "files": facts_of_files(folder, [PRECONDITIONERS])})


def read_begun(folder: Path) -> int:
    """Read the epoch in which an open segment began, and verify its preconditioners.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    try:
        facts = read_json(folder / BEGUN, BegunFacts, digest=False)  # an older ftrace wrote none
        FolderCheck(folder, facts.get("files")).check(PRECONDITIONERS, at_once=True)
    except (OSError, DamagedError) as error:
        raise DamagedError(
            f"segment {str(folder)!r} can't be continued ({error}). Train from an earlier checkpoint, or from the "
            "start into another folder"
        ) from error
    return int(facts["epoch"])

"""``ftrace check``: is what ftrace has written still what it wrote?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ftrace.arguments import Name, checked
from ftrace.console import PlainConsole
from ftrace.files.causal_settings import SETTINGS
from ftrace.files.digests import FileFacts, FolderCheck
from ftrace.files.manifests import DIGEST, check_schema, content_of_ours
from ftrace.files.noted_files import noted_files
from ftrace.scores import ScoreStore
from ftrace.shown_text import counted

# Files that describe their folders: one of these that is no JSON is damaged; another one isn't ours.
_MANIFESTS = ("manifest.json", "snapshot.json", "index.json", "segment.json", "settings.json", "files.json")


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument(
        "folders", nargs="+", type=str,
        help="Score stores, runs, snapshots, gradient indexes, causal traces, data sets; or folders with such in them.",
    )  # fmt: skip


def command(folders: Sequence[str]) -> None:
    """Verify what ftrace has written: every file against the size and digest that its manifest notes."""
    check(folders)


@dataclass(frozen=True)
class Verified:
    """What was found of a folder, or of a single file.

    Args:
        place: The folder or the file.
        files: How many files are as they were written.
        problem: What is wrong; None if nothing is.
    """

    place: Path
    files: int
    problem: str | None = None


@checked
def check(folders: Sequence[Name], console: PlainConsole | None = None) -> None:
    """Verify everything in some folders, and say a line for each thing that is in there.

    Args:
        folders: Folders that ftrace has written, or that hold such.
        console: Where to say it; default: stdout.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If something is damaged, or nothing of ftrace is there.
    """
    console = PlainConsole() if console is None else console
    problems, count = [], 0
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"expected a folder, found none at {str(folder)!r}")
        for verified in verify(folder):
            count += 1
            said = _said(verified)
            if verified.problem is not None:
                problems.append(verified.problem)
            console.print(f"{verified.place}: {said}", soft_wrap=True)
    if not count:
        raise ValueError(f"expected what ftrace has written, found nothing of it in {', '.join(map(repr, folders))}")
    if problems:
        raise ValueError(f"{len(problems)} of {counted(count, 'place')} damaged, the first: {problems[0]}")


def _said(verified: Verified) -> str:
    if verified.problem is not None:
        return f"DAMAGED: {verified.problem}"
    if not verified.files:
        return "of an older version, which notes no digests: its files could be read, and are not verified"
    return f"{counted(verified.files, 'file')} as written"


def verify(folder: Path) -> Iterator[Verified]:
    """Verify all that ftrace has written in a folder and the folders in it.

    Yields:
        Each folder with a manifest, and each JSON file that has its own digest.
    """
    read_whole: list[Path] = []
    for file in sorted(folder.rglob("*.json"), key=lambda file: (len(file.parts), file)):
        inside = file.relative_to(folder).parts
        if any(part.startswith(".") for part in inside) or any(map(file.is_relative_to, read_whole)):
            continue
        place, count = file, 0
        try:
            content = content_of_ours(file)
            if content is None:
                continue
            reader = _READERS.get(str(content.get("format")))
            if reader is not None:
                read_whole.append(file.parent)
            if reader is not None or "files" in content:
                place = file.parent
            for _ in reader(file.parent) if reader is not None else _noted(file, content):
                count += 1
        except ValueError as error:
            if place == file and file.name not in _MANIFESTS:
                continue  # no JSON, and not known to be ours
            yield Verified(place, count, str(error))
        else:
            yield Verified(place, count)


def _noted(file: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Verify what a JSON file notes, and yield the files that are as they were written."""
    if DIGEST in content:
        yield str(file)
    if "files" in content:
        check_schema(file, content["files"], dict[str, FileFacts])
        yield from FolderCheck(file.parent, content["files"]).check_all()


def _read_index(folder: Path) -> Iterator[str]:
    from ftrace.index import GradientIndex  # imports torch

    yield from GradientIndex(folder).checked_files()


def _read_traces(folder: Path) -> Iterator[str]:
    from ftrace.causal import read_trace  # imports torch

    yield str(folder / SETTINGS)
    for file in sorted(folder.glob("prompts/*.safetensors")):
        read_trace(file)
        yield str(file)
    for name in noted_files(folder).check_all():  # tables
        yield str(folder / name)


# By the format that a manifest says: those whose files say more than their manifests note.
_READERS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    "ftrace-scores": lambda folder: ScoreStore.open(folder).checked_files(),
    "ftrace-index": _read_index,
    "ftrace-causal-traces": _read_traces,
}

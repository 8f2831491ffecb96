"""JSON files that are written whole and verified when they are read.

Each has an entry ``digest`` of all its other content, so that a flipped bit or a cut is found, and is held against a
schema, so that no reader meets a list where it expects a number. Those that describe a folder, its manifests, say the
folder's ``format`` and ``version``, and note size and digest of the folder's files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import xxhash

from ftrace.files.bounded import read_bounded
from ftrace.files.digests import DamagedError
from ftrace.files.whole_files import whole_file

DIGEST = "digest"
_MOST_BYTES = 2**30


@dataclass(frozen=True)
class Form:
    """Form of a folder or file that a manifest describes.

    Args:
        format: What its entry ``format`` says.
        version: The version that is written, and the newest that is read.
        schema: A TypedDict of the entries that readers rely on; further entries are free.
        what: The thing with its article, for messages, such as ``"a score store"``.
        digests_since: The first version whose manifests have digests.
        schema_without_format: Of manifests of version 1, if these say no format; None if all manifests say it.
    """

    format: str
    version: int
    schema: Any
    what: str
    digests_since: int = 2
    schema_without_format: Any = None


def write_json(file: Path, content: Mapping[str, Any], *, sync: bool = False) -> None:
    """Write a JSON file whole, with the digest of its content.

    Args:
        file: The file; its folder must exist.
        content: Anything that JSON can hold. NaN and infinity it can't.
        sync: As :func:`ftrace.files.whole_files.whole_file`.

    Raises:
        ValueError: If JSON can't hold the content.
    """
    text = json_with_digest(content)
    with whole_file(file, sync=sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_with_digest(content: Mapping[str, Any]) -> str:
    """Return a JSON text of the content and its digest."""
    plain = {key: value for key, value in content.items() if key != DIGEST}
    try:
        written = json.loads(json.dumps(plain, allow_nan=False))  # as it will be read: keys are texts, tuples are lists
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"expected values that JSON can hold, found others ({error})") from error
    return json.dumps({**written, DIGEST: _digest(written)}, indent=2, allow_nan=False) + "\n"


def read_json(file: Path, schema: Any, *, digest: bool = True) -> dict[str, Any]:
    """Read a JSON file that :func:`write_json` has written.

    Args:
        file: The file.
        schema: A TypedDict of the entries that are relied on; further entries are free.
        digest: Whether the file must have a digest. If it has one, it must be right in any case.

    Raises:
        DamagedError: If the file can't be read, is no JSON, has been changed, or isn't as the schema says.
        FileNotFoundError: If there is none.
    """
    try:
        content = _parsed(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"expected a file, found nothing at {str(file)!r}") from error
    except OSError as error:
        raise DamagedError(f"{str(file)!r} can't be read ({error.strerror})") from error
    if digest or DIGEST in content:
        _check_digest(file, content)
    check_schema(file, content, schema)
    return content


def write_manifest(file: Path, form: Form, content: Mapping[str, Any], *, sync: bool = False) -> None:
    """Write a manifest: the content, after format and version, and its digest.

    Args:
        file: The manifest's file.
        form: What it describes.
        content: The other entries.
        sync: As :func:`ftrace.files.whole_files.whole_file`.

    Raises:
        ValueError: If the content isn't as the schema says, or JSON can't hold it.
    """
    head = {"format": form.format, "version": form.version}
    text = json_with_digest({**head, **content, **head})  # the head goes first, and nothing replaces it
    try:
        msgspec.convert(json.loads(text), form.schema)
    except msgspec.ValidationError as error:
        raise ValueError(f"{file.name} of {form.what}: {_in_words(error)}") from error
    with whole_file(file, sync=sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_manifest(file: Path, form: Form) -> dict[str, Any]:
    """Read a manifest that :func:`write_manifest` has written.

    Args:
        file: The manifest's file. Messages name its folder.
        form: What it must describe.

    Raises:
        ValueError: If it is missing, is that of something else, or is of a version that isn't known.
        DamagedError: If it is damaged.
    """
    place = repr(str(file.parent))
    try:
        content = _parsed(file)
    except (OSError, DamagedError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _type_of(error)(f"{place} is not {form.what}: can't read its {file.name} ({reason})") from error
    if "format" not in content and form.schema_without_format is not None:
        if DIGEST in content:
            _check_digest(file, content)
        check_schema(file, content, form.schema_without_format)
        return content
    if content.get("format") != form.format:
        raise ValueError(f"{place} is not {form.what}: its {file.name} doesn't say format {form.format!r}")
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= form.version:
        newer = type(version) is int and version > form.version
        remedy = ". Update ftrace" if newer else ", or it is damaged"
        raise ValueError(
            f"{place} is {form.what} of version {version!r:.40}, and this ftrace reads {form.version}{remedy}"
        )
    if version >= form.digests_since or DIGEST in content:
        _check_digest(file, content)
    check_schema(file, content, form.schema)
    return content


def _type_of(error: Exception) -> type[ValueError]:
    """Return DamagedError for a damaged file, ValueError for one that isn't there."""
    return DamagedError if isinstance(error, DamagedError) else ValueError


def content_of_ours(file: Path) -> dict[str, Any] | None:
    """Read a JSON file of ours whatever it describes, and of any version; None if there is none, or it isn't ours.

    Raises:
        DamagedError: If the file is no JSON, or has been changed.
    """
    try:
        content = _parsed(file)
    except OSError:
        return None
    if DIGEST in content:
        _check_digest(file, content)
    elif not str(content.get("format", "")).startswith("ftrace-"):
        return None
    return content


def check_schema(file: str | os.PathLike[str], content: Any, schema: Any) -> None:
    """Hold parsed content against a schema.

    Args:
        file: Where it comes from, for messages.
        content: The content.
        schema: A type that msgspec knows, such as a TypedDict.

    Raises:
        DamagedError: If it isn't as the schema says.
    """
    try:
        msgspec.convert(content, schema)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise DamagedError(f"{os.fspath(file)!r} is damaged: {_in_words(error)}") from error


def _parsed(file: Path) -> dict[str, Any]:
    """Read JSON of an object, strictly: no NaN, no key twice."""
    try:
        read = read_bounded(file, _MOST_BYTES)
    except ValueError as error:
        raise DamagedError(f"{str(file)!r} is damaged: {error}") from error
    try:
        content = json.loads(read.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError as error:
        raise DamagedError(f"{str(file)!r} is damaged: its JSON is nested too deep") from error
    except ValueError as error:
        raise DamagedError(f"{str(file)!r} is damaged: it is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{str(file)!r} is damaged: expected a JSON object, found {type(content).__name__}")
    return content


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"found {constant}, which JSON doesn't have")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"found the entry {twice!r:.80} twice")
    return content


def _check_digest(file: Path, content: Mapping[str, Any]) -> None:
    others = {key: value for key, value in content.items() if key != DIGEST}
    try:
        right = content.get(DIGEST) == _digest(others)
    except ValueError:  # an infinite number, such as 1e999
        right = False
    if not right:
        raise DamagedError(
            f"{str(file)!r} is damaged, or was changed by hand: its digest is not that of its content. Copy it again "
            "from where it came from, or make it anew"
        )


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return str(xxhash.xxh3_128_hexdigest(text.encode("ascii")))


def _in_words(error: Exception) -> str:
    """Say msgspec's message in the words of all others: ``entry 'a.b': expected int, found str``."""
    text = str(error).replace("`", "")
    message, _, place = text.partition(" - at ")
    message = message[:1].lower() + message[1:].replace(", got ", ", found ")
    return f"entry {place.removeprefix('$').removeprefix('.')!r}: {message}" if place else message

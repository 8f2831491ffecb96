"""Files that are changed as disks, copies and hands change them, and formats that are read after that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ftrace.files.digests import finish_background_checks


@dataclass(frozen=True)
class StoredFormat:
    """A format that ftrace writes and reads back.

    Args:
        make: Writes a folder of this format; another seed makes other content, with the same names of files.
        read: Reads everything that readers read out of the folder. What is damaged may be made anew, as caches are.
        has_digests: Whether damage is found for sure. If not, as in older versions, errors must still be clean.
    """

    make: Callable[[Path, int], None]
    read: Callable[[Path], Any]
    has_digests: bool = True


def content_of(stored: StoredFormat, folder: Path) -> Any:
    """Read everything, wait for what is verified in the background, and return it in a form that compares by value."""
    try:
        return comparable(stored.read(folder))
    finally:
        finish_background_checks()


def comparable(value: Any) -> Any:
    """Turn arrays, tensors, tables and data classes, nested at will, into values that ``==`` compares bit by bit."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().contiguous()
        return ("tensor", str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, np.ndarray):
        content = value.tolist() if value.dtype.kind in "OU" else value.tobytes()
        return ("array", str(value.dtype), value.shape, content)
    if hasattr(value, "to_pylist"):
        return repr(value.to_pylist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: comparable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    return repr(value)


@dataclass(frozen=True)
class Change:
    """A change of one file.

    Args:
        kind: One of :data:`KINDS`.
        which: Which file, and which other one, as fractions of their count.
        where: Where in the file, as a fraction of its size.
        amount: A number of bits or bytes.
    """

    kind: str
    which: tuple[float, float]
    where: float
    amount: int


KINDS = (
    "flip",
    "cut",
    "lengthen",
    "insert",
    "delete",
    "zeros",
    "empty",
    "remove",
    "folder",
    "other",
    "swap",
    "foreign",
)
_HALF_OPEN = st.floats(0, 1, exclude_max=True)
CHANGES = st.builds(Change, st.sampled_from(KINDS), st.tuples(_HALF_OPEN, _HALF_OPEN), _HALF_OPEN, st.integers(1, 64))
_FOREIGN = (b"[]\n", b"{}\n", b"null", b"\x93NUMPY\x01\x00", b"PK\x03\x04" + bytes(60), b"PAR1PAR1", b"\xff\xfe" * 40)


def apply(change: Change, folder: Path, other: Path) -> str:
    """Change one file of a folder, and say which.

    Args:
        change: How.
        folder: The folder.
        other: A folder of the same format with other content, whose files may take the place of those of the same name.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    name, second = (names[int(share * len(names))] for share in change.which)
    file = folder / name
    if change.kind == "remove":
        file.unlink()
    elif change.kind == "folder":
        file.unlink()
        file.mkdir()
    elif change.kind == "other" and (other / name).exists():
        file.write_bytes((other / name).read_bytes())
    elif change.kind == "swap":
        file.write_bytes((folder / second).read_bytes())
    else:
        file.write_bytes(_changed(change, file.read_bytes()))
    return name


def _changed(change: Change, content: bytes) -> bytes:
    place, amount = int(change.where * len(content)), change.amount
    if change.kind == "flip" and content:
        flipped = bytearray(content)
        flipped[place] ^= 1 << amount % 8
        return bytes(flipped)
    if change.kind == "cut":
        return content[:place]
    if change.kind == "lengthen":
        return content + content[:amount]
    if change.kind == "insert":
        return content[:place] + bytes(range(amount)) + content[place:]
    if change.kind == "delete":
        return content[:place] + content[place + amount :]
    if change.kind == "zeros":
        return content[:place] + bytes(len(content[place : place + amount])) + content[place + amount :]
    return _FOREIGN[amount % len(_FOREIGN)] if change.kind == "foreign" else b""

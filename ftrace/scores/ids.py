"""Ids: whole numbers of 64 bits, or names that become such."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def stable_id(name: str) -> int:
    """An int64 from 0 on for a name: the same on every machine and process, told apart by 63 bits of its SHA-256.

    Raises:
        ValueError: If the name is no text: it has half of a surrogate pair.

    Example:
        >>> stable_id("train/00017")
        8381322313509753406
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected a name that is text, found half of a surrogate pair, which is no character, in {name!r:.60}. "
            "Write the whole character, or leave it out"
        ) from error
    return int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big") >> 1


def as_ids(values: Sequence[int] | np.ndarray, what: str) -> np.ndarray:
    """Ids as int64, none of which has become another.

    Args:
        values: The ids, ``[N]``.
        what: What they are called in errors.

    Raises:
        ValueError: If one is no whole number, or has more than 64 bits.
    """
    problem = f"{what}: expected whole numbers from -2^63 to 2^63 - 1, found"
    remedy = "ftrace.scores.stable_id(str(id))"
    found = np.asarray(values)
    if found.dtype.kind == "O":  # of Python's whole numbers, perhaps large ones
        try:
            found = np.array([one.__index__() for one in found.tolist()], dtype=np.int64)
        except (OverflowError, AttributeError, TypeError) as error:
            raise ValueError(f"{problem} others ({error}). Number them as names: {remedy}") from error
    if found.dtype.kind not in "iufb" and found.size:
        raise ValueError(f"{problem} {found.dtype}. Number them as names: {remedy}")
    if found.dtype.kind not in "iu" and found.size:
        raise ValueError(f'{problem} {found.dtype}. Make them whole numbers: ids.astype("int64")')
    if found.dtype == np.uint64 and (found > np.uint64(2**63 - 1)).any():
        raise ValueError(f"{problem} {found.max()}. Number them as names: {remedy}")
    return found.astype(np.int64)

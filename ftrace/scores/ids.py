"""Ids: signed 64-bit integers, or names that are hashed to them."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence

import numpy as np


def stable_id(name: str) -> int:
    """Hash a name to an id from 0 to 2^63 - 1: 63 bits of its SHA-256, the same on every machine and in every process.

    Raises:
        ValueError: If the name is not valid text because it contains half of a surrogate pair.

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
    """Convert ids to int64 without changing any of them.

    Args:
        values: ``[N]``.
        what: Their name in error messages.

    Raises:
        ValueError: If one is not an integer, or doesn't fit into 64 bits.
    """
    problem = f"{what}: expected whole numbers from -2^63 to 2^63 - 1, found"
    remedy = "ftrace.scores.stable_id(str(id))"
    ids = np.asarray(values)
    if ids.dtype.kind == "O":  # Python's integers, perhaps large ones
        try:
            ids = np.array([value.__index__() for value in ids.tolist()], dtype=np.int64)
        except (OverflowError, AttributeError, TypeError) as error:
            raise ValueError(f"{problem} others ({error}). Number them as names: {remedy}") from error
    if ids.dtype.kind not in "iufb" and ids.size:
        raise ValueError(f"{problem} {ids.dtype}. Number them as names: {remedy}")
    if ids.dtype.kind not in "iu" and ids.size:
        raise ValueError(f'{problem} {ids.dtype}. Make them whole numbers: ids.astype("int64")')
    if ids.dtype == np.uint64 and (ids > np.uint64(2**63 - 1)).any():
        raise ValueError(f"{problem} {ids.max()}. Number them as names: {remedy}")
    return ids.astype(np.int64)


def as_integer(value: object, what: str, expected: str = "a whole number") -> int:
    """Convert an integer of any library to Python's own.

    Args:
        value: The integer. A truth value is none.
        what: Its name in the error message.
        expected: What the message says was expected.

    Raises:
        ValueError: If it is not an integer.

    Example:
        >>> as_integer(np.int64(7), "k")
        7
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{what}: expected {expected}, found {value!r:.80}") from None


def is_ascending(ids: np.ndarray) -> bool:
    """Return whether each id is larger than the one before; compared, since differences may exceed 64 bits.

    Example:
        >>> is_ascending(np.array([-(2**63), 0, 2**63 - 1])), is_ascending(np.array([4, -(2**63)]))
        (True, False)
    """
    return bool((ids[:-1] < ids[1:]).all())


def ascending_order(ids: np.ndarray) -> np.ndarray | None:
    """Return the positions of ids, ``[N]``, in ascending order of ids; None if they ascend as they are."""
    return None if is_ascending(ids) else np.argsort(ids, kind="stable")


def places_of(wanted: np.ndarray, ids: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """Find the positions of some ids among others.

    Args:
        wanted: The ids to find, ``[n]``.
        ids: Where to find them, ``[N]``, each once.
        order: What :func:`ascending_order` returns of ``ids``.

    Returns:
        Positions, ``[n]``; -1 for an id that isn't there.

    Example:
        >>> places_of(np.array([8, 4, 3]), np.array([3, 5, 8]))
        array([ 2, -1,  0])
    """
    if not len(ids):
        return np.full(len(wanted), -1)
    ascending = np.argsort(wanted, kind="stable")  # neighbours are looked for one after another, which is quick
    places = np.empty(len(wanted), np.int64)
    places[ascending] = np.searchsorted(ids, wanted[ascending], sorter=order)
    places = places.clip(max=len(ids) - 1)
    places = places if order is None else order[places]
    return np.where(ids[places] == wanted, places, -1)

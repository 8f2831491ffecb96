"""Arrays of a score store on disk: mapped into memory, and verified before they are used."""

from __future__ import annotations

import struct
from pathlib import Path
from tokenize import TokenError

import numpy as np

from ftrace.files.digests import DamagedError, FolderCheck
from ftrace.shown_text import one_line

FLOATS, INTEGERS, NAMES = ("float32", "float64"), ("int64",), ("str",)
# What NumPy raises when it reads the head of a damaged file, of a store whose manifest notes no digests.
_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError, KeyError, OverflowError, MemoryError,
               RecursionError, struct.error, TokenError)  # fmt: skip
_REMEDY = "Write the store anew"


class StoredArrays:
    """The ``.npy`` files of a store.

    Args:
        folder: The store's folder.
        files: What its manifest notes of its files.
    """

    def __init__(self, folder: Path, files: FolderCheck) -> None:
        self._folder = folder
        self._files = files
        self._maps: dict[str, np.ndarray] = {}

    def has(self, name: str) -> bool:
        """Tell whether the store has an array."""
        return self._files.has(f"{name}.npy")

    def check_head(self, name: str, shape: tuple[int, ...], types: tuple[str, ...]) -> None:
        """Make sure that an array is there, and of its shape and type, without reading it.

        Args:
            name: As in :meth:`whole`.
            shape: As in :meth:`whole`.
            types: As in :meth:`whole`.

        Raises:
            DamagedError: If not.
        """
        self._map(name, shape, types)

    def whole(self, name: str, shape: tuple[int, ...], types: tuple[str, ...]) -> np.ndarray:
        """Map an array of which any part may be used; a large file is verified in the background.

        Args:
            name: The file's name without its ending.
            shape: As the manifest says.
            types: Names of the types that are expected; "str" for texts.

        Raises:
            DamagedError: If it is missing or not what was written.
        """
        self._files.check(f"{name}.npy")
        return self._map(name, shape, types)

    def part(self, name: str, shape: tuple[int, ...], types: tuple[str, ...], column: int | slice) -> np.ndarray:
        """Map a part of an array; of a large file, only this part is verified.

        Args:
            name: As in :meth:`whole`.
            shape: As in :meth:`whole`.
            types: As in :meth:`whole`.
            column: A column of a matrix, or a slice of a vector with a start and a stop.

        Raises:
            DamagedError: As :meth:`whole`.
        """
        self._files.check_part(f"{name}.npy", 0, 1)  # the head, which is in the first block
        array = self._map(name, shape, types)
        part = array[column] if isinstance(column, slice) else array[:, column]
        if part.size and isinstance(array, np.memmap):
            first = array.offset + part.ctypes.data - array.ctypes.data
            self._files.check_part(f"{name}.npy", first, first + (part.size - 1) * part.strides[0] + part.itemsize)
        return part

    def _map(self, name: str, shape: tuple[int, ...], types: tuple[str, ...]) -> np.ndarray:
        if name not in self._maps:
            self._maps[name] = self._mapped(name, shape, types)
        return self._maps[name]

    def _mapped(self, name: str, shape: tuple[int, ...], types: tuple[str, ...]) -> np.ndarray:
        file = self._folder / f"{name}.npy"
        try:
            if all(shape):
                array: np.ndarray = np.lib.format.open_memmap(file, mode="r")
            else:  # an empty file can't be mapped
                with file.open("rb") as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
        except _UNREADABLE as error:
            raise DamagedError(f"{str(file)!r} is missing or damaged ({one_line(str(error))}). {_REMEDY}") from error
        if array.shape != shape:
            raise DamagedError(
                f"{str(file)!r} is damaged: expected shape {shape} as in the manifest, found {array.shape}. {_REMEDY}"
            )
        found = "str" if array.dtype.kind == "U" else array.dtype.name
        if found not in types:
            raise DamagedError(
                f"{str(file)!r} is damaged: expected {' or '.join(types)}, found {array.dtype}. {_REMEDY}"
            )
        return array

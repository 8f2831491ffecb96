"""Space that is reserved for a file: its size and content, with and without the system's help, and on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ftrace.files.reserved import reserve


@pytest.mark.parametrize("is_supported", [True, False])
def test_a_file_grows_by_zeros_that_are_on_disk_and_keeps_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_supported: bool
) -> None:
    def unsupported(*args: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if not is_supported:
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    size = 3 * 2**20 + 5
    with (tmp_path / "file").open("w+b") as stream:
        stream.write(b"begins")
        reserve(stream, size)
        assert stream.tell() == 6
    assert (tmp_path / "file").read_bytes() == b"begins" + bytes(size - 6)
    assert (tmp_path / "file").stat().st_blocks * 512 >= size


def test_a_file_that_is_larger_stays_as_it_is(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as stream:
        stream.write(b"content")
        reserve(stream, 3)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as stream, pytest.raises(OSError, match=r"No space|too large") as raised:
        reserve(stream, 2**62)
    assert raised.value.errno in (errno.ENOSPC, errno.EFBIG)

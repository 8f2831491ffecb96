"""Full disks: one error that names the file, whatever library writes; what was there stays, and nothing else does."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from ftrace.files.full_disks import full_disk_named
from ftrace.files.whole_files import whole_file, whole_folder
from helpers.small_disk import room_for

NUMBERS = np.random.default_rng(0).random(50_000)


def write_array(file: Path) -> None:
    with file.open("wb") as stream:
        np.save(stream, NUMBERS)


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda file: file.write_text(json.dumps(NUMBERS.tolist())),
    "numpy": write_array,
    "arrow": lambda file: pyarrow.parquet.write_table(pa.table({"numbers": NUMBERS}), file),
    "safetensors": lambda file: save_file({"numbers": torch.from_numpy(NUMBERS)}, file),
    "torch": lambda file: torch.save(torch.from_numpy(NUMBERS), file),
}


@pytest.mark.parametrize("library", WRITERS)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_every_library_s_error_names_what_was_to_be_written(tmp_path: Path, library: str, kind: str) -> None:
    place = tmp_path / "place"
    place.write_text("earlier")
    refused = pytest.raises(OSError, match=r"place' can't be written .* Make room")
    if kind == "file":
        with room_for(2**16), refused as error, whole_file(place) as file:
            WRITERS[library](file)
    else:
        place.unlink()
        place.mkdir()
        (place / "earlier").touch()
        with room_for(2**16), refused as error, whole_folder(place) as folder:
            WRITERS[library](folder / "inner")
        assert [path.name for path in place.iterdir()] == ["earlier"]
    assert error.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [place]


def test_a_library_that_says_nothing_is_understood_by_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="it failed"), full_disk_named(tmp_path / "file"):
        raise RuntimeError("it failed")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    refused = pytest.raises(OSError, match=r"No space left on device: .*file' can't be written")
    with refused, full_disk_named(tmp_path / "file"):
        raise RuntimeError("it failed")


def test_the_cause_of_an_error_counts(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"), full_disk_named(tmp_path / "file"):
        raise KeyError("it failed") from OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [ValueError("expected 3"), PermissionError(errno.EACCES, "no"), KeyError("key")])
def test_other_errors_stay_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, full_disk_named(tmp_path / "file"):
        raise error
    assert raised.value is error

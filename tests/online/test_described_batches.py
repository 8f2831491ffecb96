"""Texts that a function says of batches: what is written beside a checkpoint, and what is read from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ftrace.online.texts.described_batches import DescribedBatches


def described(batch: dict[str, Any]) -> dict[str, Any]:
    return {"text": [f"text {i}" for i in batch["example_id"].tolist()], "answers": [["a"], []]}


def collector() -> DescribedBatches:
    return DescribedBatches(described, "example_id", "id_key", "examples", "test")


def batch(*ids: int) -> dict[str, Any]:
    return {"example_id": torch.tensor(ids)}


def texts(collected: DescribedBatches) -> list[str]:
    table = collected.table()
    return [] if table is None else table["text"].to_pylist()


def test_each_text_is_in_one_file(tmp_path: Path) -> None:
    first = collector()
    assert first.save(tmp_path) == []
    first.add(batch(4, 2), {})
    one = first.save(tmp_path)
    assert first.save(tmp_path) == one
    first.add(batch(2, 9), {})
    both = first.save(tmp_path)
    assert (len(one), len(both)) == (1, 2)
    assert texts(first) == ["text 2", "text 4", "text 9"]

    second = collector()
    second.load(one, tmp_path)
    second.add(batch(9, 4), {})
    assert texts(second) == ["text 2", "text 4", "text 9"]
    assert second.save(tmp_path)[0] == one[0]


def test_files_are_found_where_they_were_moved(tmp_path: Path) -> None:
    first = collector()
    first.add(batch(4, 2), {})
    entries = first.save(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    second = collector()
    second.load(entries, tmp_path / "after")
    assert texts(second) == texts(first)


@pytest.mark.parametrize("damage", [True, False])
def test_a_file_that_is_lost_is_a_warning_and_its_batches_are_described_again(damage: bool, tmp_path: Path) -> None:
    first = collector()
    first.add(batch(4, 2), {})
    entries = first.save(tmp_path)
    file = Path(entries[0]["file"])
    file.write_bytes(b"no") if damage else file.unlink()
    second = collector()
    with pytest.warns(UserWarning, match="no texts until they are seen again"):
        second.load(entries, tmp_path)
    second.add(batch(4, 2), {})
    assert texts(second) == texts(first)


def test_the_batch_stays_as_it_is() -> None:
    def takes(given: dict[str, Any]) -> dict[str, Any]:
        return described({"example_id": given.pop("example_id")})

    given = batch(1, 2)
    DescribedBatches(takes, "example_id", "id_key", "examples", "test").add(given, {})
    assert given["example_id"].tolist() == [1, 2]


def test_a_tensor_that_is_changed_is_an_error_at_any_batch() -> None:
    def changes(given: dict[str, Any]) -> dict[str, Any]:
        if 3 in given["example_id"]:
            given["example_id"] += 1
        return described(given)

    collected = DescribedBatches(changes, "example_id", "id_key", "examples", "test")
    collected.add(batch(1, 2), {})
    with pytest.raises(ValueError, match=r"leaves the batch as it is, found.*tensor\.clone"):
        collected.add(batch(3, 4), {})

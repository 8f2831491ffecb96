"""Which tokens of a batch are whose: by document_ids, or by position_ids that begin anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ftrace.online.rehearsal.exchange import exchanged
from ftrace.online.rehearsal.packed_rows import PackedBatches, find_documents, packed_inputs, packed_rows_in

Rows = list[list[int]]


def of_positions(positions: Rows, **others: Rows) -> dict[str, Tensor]:
    batch = {"position_ids": positions, "input_ids": [[5] * len(positions[0])] * len(positions), **others}
    return {name: torch.tensor(values) for name, values in batch.items()}


def found(batch: Any, count: int, **settings: Any) -> Rows | None:
    documents = find_documents(batch, count, "example_id", "me", **settings)
    assert documents is None or documents.total == count
    return None if documents is None else documents.owners.tolist()


BY_POSITIONS: dict[str, tuple[dict[str, Tensor], int, Rows]] = {
    "one row": (of_positions([[0, 1, 0, 1, 2]]), 2, [[0, 0, 1, 1, 1]]),
    "several rows": (of_positions([[0, 1, 0], [0, 0, 1]]), 4, [[0, 0, 1], [2, 3, 3]]),
    "positions that begin elsewhere": (of_positions([[2, 3, 2, 3, 4]]), 2, [[0, 0, 1, 1, 1]]),
    "padding of position 0": (of_positions([[0, 1, 0, 1, 0, 0]]), 2, [[0, 0, 1, 1, -1, -1]]),
    "documents of one token": (of_positions([[0, 1, 0, 1, 0, 0]]), 4, [[0, 0, 1, 1, 2, 3]]),
    "documents of one token, and padding": (of_positions([[0, 1, 0, 1, 0, 0]]), 3, [[0, 0, 1, 1, 2, -1]]),
    "padding without labels": (
        of_positions(
            [[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 0, 0]],
            labels=[[-100, 3, -100, 3, -100, -100], [-100, 3, 3, -100, -100, -100]],
        ),
        3,
        [[0, 0, 1, 1, -1, -1], [2, 2, 2, -1, -1, -1]],
    ),
    "padding by a mask": (
        of_positions([[0, 1, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2]], attention_mask=[[1, 1, 1, 1, 0, 0], [1] * 6]),
        4,
        [[0, 0, 1, 1, -1, -1], [2, 2, 2, 3, 3, 3]],
    ),
    "padding on the left, by a mask": (
        of_positions([[1, 1, 0, 1, 2, 0]], attention_mask=[[0, 0, 1, 1, 1, 1]]), 2, [[-1, -1, 0, 0, 0, 1]],
    ),
    "a row of padding alone": (
        of_positions([[0, 1, 0, 1], [0] * 4], labels=[[-100, 4, -100, 4], [-100] * 4]), 2, [[0, 0, 1, 1], [-1] * 4],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_POSITIONS)
def test_documents_by_positions(name: str) -> None:
    batch, count, owners = BY_POSITIONS[name]
    assert found(batch, count) == owners
    nested = {"inputs": batch, "example_id": torch.arange(count)}
    assert found(nested, count) == owners
    assert found({key: np.asarray(value) for key, value in batch.items()}, count) == owners


def test_documents_by_numbers() -> None:
    numbers = torch.tensor([[4, 4, 9, -1], [9, 9, 4, 4]])
    batch = {"document_ids": numbers, "position_ids": torch.arange(4).expand(2, 4), "input_ids": numbers.abs()}
    assert found(batch, 4) == [[0, 0, 1, -1], [2, 2, 3, 3]]
    flat = {"document_ids": torch.tensor([1, 1, 2, 2, 2, 0]), "t": torch.arange(6)}
    assert found(flat, 3) == [[0, 0, 1, 1, 1, 2]]


ROWS: dict[str, tuple[dict[str, Tensor], int]] = {
    "an id for each packed row": (of_positions([[0, 1, 0], [0, 0, 1]]), 2),
    "an id for the only row": (of_positions([[0, 1, 0]]), 1),
    "a document in each row": (of_positions([[0, 1, 2], [0, 1, 2]]), 2),
    "pairs of rows": (of_positions([[0, 1, 0], [0, 0, 1], [0, 1, 2], [0, 1, 2]]), 2),
    "positions that all rows share": ({**of_positions([[0, 1, 0]]), "input_ids": torch.ones(4, 3)}, 4),
    "a column of that name": ({"document_ids": torch.tensor([5, 5, 7]), "x": torch.ones(3, 2)}, 3),
    "positions of three axes": ({"position_ids": torch.zeros(3, 2, 4).long(), "input_ids": torch.ones(2, 4)}, 8),
    "no numbers": ({"input_ids": torch.ones(2, 3)}, 5),
}


@pytest.mark.parametrize("name", ROWS)
def test_otherwise_rows_are_the_examples(name: str) -> None:
    batch, count = ROWS[name]
    assert found(batch, count) is None


def test_once_there_were_packed_rows_single_documents_are_told_apart_as_well() -> None:
    packed = PackedBatches("example_id", "me")
    single = of_positions([[0, 1, 2], [0, 1, 2]])
    assert packed.documents(single, 2) is None
    assert packed.documents(of_positions([[0, 1, 0]]), 2) is not None
    assert packed.is_new
    documents = packed.documents(single, 2)
    assert documents is not None
    assert documents.owners.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert not packed.is_new


def test_padding_of_several_rows_that_may_be_a_document_must_be_told() -> None:
    batch = of_positions([[0, 1, 0, 1, 0, 0], [0, 1, 2, 3, 0, 0]])
    assert found(batch, 3) is not None
    assert found(batch, 7) is not None
    with pytest.raises(ValueError, match=r"5 ids .* 3 documents in 2 packed rows \(7 with .*\"document_ids\", -1"):
        found(batch, 5)
    batch["document_ids"] = torch.tensor([[0, 0, 1, 1, 2, -1], [3, 3, 3, 3, 4, -1]])
    assert found(batch, 5) == batch["document_ids"].tolist()


def test_tokens_are_exchanged_and_nothing_else() -> None:
    batch = of_positions([[0, 1, 2, 0, 1, 0]], labels=[[-100, 2, 3, -100, 5, -100]])
    batch |= {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5, 6]]),
        "attention_mask": torch.ones(1, 6, dtype=torch.int64),
        "seq_idx": torch.tensor([[0, 0, 0, 1, 1, 2]], dtype=torch.int32),
        "mask": torch.ones(1, 1, 6, 6),
        "weights": torch.arange(3.0),
        "vectors": torch.arange(12.0).view(1, 6, 2),
        "example_id": torch.arange(3),
    }
    documents = find_documents(batch, 3, "example_id", "me")
    assert documents is not None
    inputs = packed_inputs(batch, documents)
    assert {path[0] for path in inputs.axes} == {"input_ids", "labels", "vectors"}
    made = exchanged(batch, inputs, [1, 0, 2])
    assert made["input_ids"].tolist() == [[4, 5, 4, 1, 2, 6]]
    assert made["vectors"][0, :, 0].tolist() == [6, 8, 6, 0, 2, 10]
    assert exchanged(batch, inputs, [-1, 1, 2])["input_ids"].tolist() == [[2, 3, 1, 4, 5, 6]]
    for name in batch.keys() - {"input_ids", "labels", "vectors"}:
        assert torch.equal(made[name], batch[name])
    laid_out = packed_rows_in(batch, documents)
    assert laid_out["input_ids",].tolist() == [[1, 2, 3], [4, 5, 0], [6, 0, 0]]

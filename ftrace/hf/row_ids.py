"""The ids of examples, from the rows of a trainer's data to its batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ftrace.online.undisturbed.random_state import isolated_random_state


class CollatorWithIds:
    """A trainer's collator, whose batches also carry the ids of their rows.

    TRL's batches of several rows for each of the trainer's own, such as DPO's ``[all chosen, all rejected]``, have each
    id as often. A row into which several documents are packed has a list of ids.

    Args:
        collator: The trainer's own.
        key: The key of the ids.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], key: str) -> None:
        self.collator = collator
        self.key = key

    def __call__(self, rows: list[Any]) -> Any:
        """Collate rows, and add their ids.

        Raises:
            ValueError: If a row has no id, or if the collator makes several rows of it, or changes their order.
        """
        missing = [row for row in rows if not isinstance(row, Mapping) or self.key not in row]
        if missing:
            found = list(missing[0]) if isinstance(missing[0], Mapping) else type(missing[0]).__name__
            raise ValueError(f'expected an id under "{self.key}" in each row of train_dataset, found {found}. Add them')
        batch = self.collator([{name: value for name, value in row.items() if name != self.key} for row in rows])
        ids = [row[self.key] for row in rows]
        if isinstance(batch, list):  # GRPO's rows, of which it makes its own batches
            return [{**row, self.key: id_} for row, id_ in zip(batch, ids, strict=True)]
        flat = [each for of_row in ids for each in (of_row if isinstance(of_row, list | Tensor) else [of_row])]
        copies = _rows_of(batch) // len(ids) if len(flat) == len(ids) else 1
        self._refuse_others_order(rows, batch, copies)
        flat = flat * max(1, copies)
        batch[self.key] = flat if isinstance(flat[0], str) else torch.tensor([int(each) for each in flat])
        return batch

    def _refuse_others_order(self, rows: list[Any], batch: Mapping[str, Any], copies: int) -> None:
        """Refuse batches of a user's own collator whose rows aren't those of the data set, one by one."""
        if any(kind.__module__.startswith("trl.") for kind in type(self.collator).__mro__):
            return
        expected = "expected a collator that makes one row of a batch of each row in train_dataset, in order, found"
        if copies > 1:
            raise ValueError(f"{expected} {copies} of each. Make them in the data set, each with an id")
        if copies == 1 and _are_in_another_order(rows, batch):
            raise ValueError(f"{expected} another order. Leave rows in their order")


def _are_in_another_order(rows: Sequence[Mapping[str, Any]], batch: Mapping[str, Any]) -> bool:
    """Whether the tokens of a batch's row are none of the row that has its id, but those of another one."""
    tokens, mask = batch.get("input_ids"), batch.get("attention_mask")
    if not isinstance(tokens, Tensor) or not isinstance(mask, Tensor) or tokens.shape != mask.shape or tokens.ndim != 2:
        return False
    of_rows = [row.get("input_ids", ()) for row in rows]
    given = [value.tolist() if hasattr(value, "tolist") else list(value) for value in of_rows]
    made = [row[kept.bool()].tolist() for row, kept in zip(tokens, mask, strict=True)]
    return any(one != other and one in given for one, other in zip(made, given, strict=False))


def _rows_of(batch: Mapping[str, Any]) -> int:
    first = batch.get("input_ids")
    if not isinstance(first, Tensor):
        first = next((value for value in batch.values() if isinstance(value, Tensor) and value.ndim), None)
    return 0 if first is None else len(first)


class NumberedRows(Dataset[dict[str, Any]]):
    """The rows of a data set, numbered by their places.

    Args:
        rows: A map-style data set of dictionaries.
        key: The key of the numbers.
    """

    def __init__(self, rows: Any, key: str) -> None:
        self.rows = rows
        self.key = key

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self.rows[place]
        if not isinstance(row, Mapping):
            raise ValueError(
                f"expected dictionaries in train_dataset, found a row of type {type(row).__name__}. Return "
                f'{{..., "{self.key}": place}}'
            )
        return {**row, self.key: place}

    def __getattr__(self, name: str) -> Any:  # a trainer's own sampler may use attributes of its data set
        if name.startswith("__") or name == "rows":
            raise AttributeError(name)
        return getattr(self.rows, name)


def has_ids(rows: Any, key: str) -> bool:
    """Whether the rows of a data set have ids."""
    if isinstance(rows, datasets.Dataset | datasets.IterableDataset) and rows.column_names is not None:
        return key in rows.column_names
    if isinstance(rows, IterableDataset) or not len(rows):
        return True  # as far as one can tell
    with isolated_random_state():  # a row may be augmented as it is read
        first = rows[0]
    return isinstance(first, Mapping) and key in first


def numbered(rows: Any, key: str) -> Any:
    """Number the rows of a data set by their places; of packed ones, the documents.

    Raises:
        ValueError: If rows have no places.
    """
    if not hasattr(rows, "__len__") or isinstance(rows, IterableDataset | datasets.IterableDataset):
        raise ValueError(
            f'expected an id under "{key}" in each row of train_dataset, since rows of {type(rows).__name__} have no '
            "places by which to number them. Add them where the rows come from"
        )
    if not isinstance(rows, datasets.Dataset):
        return NumberedRows(rows, key)
    if "seq_lengths" not in rows.column_names:
        return rows.add_column(key, list(range(len(rows))))
    ids, first = [], 0
    for lengths in rows["seq_lengths"]:
        ids.append(list(range(first, first + len(lengths))))
        first += len(lengths)
    return rows.add_column(key, ids)


@contextmanager
def ids_in_batches(trainer: Any, key: str, *, numbers: bool) -> Iterator[None]:
    """Let a trainer's loader of training rows, which is made while this is active, keep their ids.

    Args:
        trainer: The trainer.
        key: The key of the ids.
        numbers: Whether rows are numbered, since they have none.
    """
    kept = {name: getattr(trainer, name) for name in ("train_dataset", "data_collator", "_signature_columns")}
    if numbers:
        trainer.train_dataset = numbered(trainer.train_dataset, key)
    trainer._set_signature_columns_if_needed()
    trainer._signature_columns = [*trainer._signature_columns, key]
    trainer.data_collator = CollatorWithIds(trainer.data_collator, key)
    try:
        yield
    finally:
        vars(trainer).update(kept)


def without(batch: Any, key: str) -> Any:
    """Copy a batch without its ids, as an object of the same class: some have their entries as attributes, too."""
    if not isinstance(batch, MutableMapping) or key not in batch:
        return batch
    bare = copy.copy(batch)
    del bare[key]
    return bare


def names_of_completions(rows: Sequence[Mapping[str, Any]], key: str, step: int, process: int) -> list[str]:
    """Name the completions that were sampled for some prompts before a step: ``"prompt@step.process.place"``."""
    return [f"{row[key]}@{step}.{process}.{place}" for place, row in enumerate(rows)]

"""Packed rows: which tokens of a batch belong to which document, and which of its tensors hold tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrace.gradients import Documents, Examples, candidates
from ftrace.online.rehearsal.exchange import Inputs, KeyPath, tensors_in

DOCUMENTS, POSITIONS = "document_ids", "position_ids"
_MASK, _LABELS, _IGNORED = "attention_mask", "labels", -100


def find_documents(batch: Any, count: int, id_key: str | int, who: str, *, always: bool = False) -> Documents | None:
    """Find the documents of a batch, where these are its examples.

    ``document_ids`` have a number for each token, the same for all tokens of a document, another one for the next, and
    a negative one for padding. Without these, ``position_ids`` begin anew with each document: a document ends where
    they don't grow. Padding is then where ``attention_mask`` is 0; and documents at the end of a row that have no label
    (without ``labels``: that have one token) are padding where the number of ids says so.

    Args:
        batch: The batch of one dataloader.
        count: The number of its ids.
        id_key: Their key.
        who: Whose messages these are.
        always: Whether to tell documents apart also where each row has a single one, so that it makes no difference.

    Returns:
        None where examples are rows.

    Raises:
        ValueError: If there are several documents in a row, and as many ids neither as documents nor as rows.
    """
    if count < 2:
        return None
    tensors = {path: _as_tensor(value) for path, value in tensors_in(batch).items()}
    for path, numbers in tensors.items():
        if path[-1:] == (DOCUMENTS,) and numbers.ndim in (1, 2) and len(numbers) != (count if numbers.ndim == 1 else 0):
            break
    else:
        found = [path for path, value in tensors.items() if path[-1:] == (POSITIONS,) and value.ndim == 2]
        if not found:
            return None
        path, numbers = found[0], tensors[found[0]]
    if numbers.is_floating_point() or not numbers.numel():
        return None
    runs = _runs(path, numbers, tensors)
    with_all, without = _numbered(runs), _numbered(_without_unlabelled(path, runs, tensors))
    rows = len(runs)
    several = int((without >= 0).any(1).sum()) < int(without.max()) + 1
    for owners in (with_all, without):
        is_split = int((owners >= 0).any(1).sum()) < count
        if int(owners.max()) + 1 == count and (is_split or count != rows or always):
            return Documents(owners, count)
    if several and rows % count and _holds_tokens(path, numbers, tensors):
        possible = sorted({int(with_all.max()) + 1, int(without.max()) + 1})
        raise ValueError(
            f'{who}: the batch has {count} ids under "{id_key}", but {" or ".join(map(str, possible))} documents in '
            f'{rows} packed rows, told apart by "{path[-1]}". Give an id for each document, in their order, row by row '
            "from left to right; or an id for each row, which is the example then. Documents of one example, such as a "
            "pair, may have the same id"
        )
    return None


class PackedBatches:
    """The packed batches of one run.

    Args:
        id_key: The key of the examples' ids in a batch.
        who: Whose messages these are.

    Attributes:
        is_new: Whether the current batch is the first packed one of its kind. Attention may cross documents in one kind
            only, such as batches with a mask.
    """

    def __init__(self, id_key: str | int, who: str) -> None:
        self.id_key = id_key
        self.who = who
        self.is_new = False
        self._kinds: set[frozenset[KeyPath]] = set()

    def documents(self, batch: Any, count: int) -> Documents | None:
        """Find the documents of the next batch; None where examples are rows.

        Args:
            count: The number of its ids.
        """
        self.is_new = False
        documents = find_documents(batch, count, self.id_key, self.who, always=bool(self._kinds))
        if documents is not None:
            kind = frozenset(tensors_in(batch))
            self.is_new = kind not in self._kinds
            self._kinds.add(kind)
        return documents


def packed_inputs(batch: Any, documents: Documents) -> Inputs:
    """Find the tokens in a batch: what is exchanged to see what depends on which document.

    Lengths, positions and masks stay as they are: what ``document_ids`` and ``position_ids`` say, integers that are the
    same for all tokens of a document, and what has two axes of tokens.
    """
    tensors = {path: _as_tensor(value) for path, value in tensors_in(batch).items()}
    shapes = {path: tuple(value.shape) for path, value in tensors.items()}
    tokens = [path for path, shape in shapes.items() if _leading(shape, documents)]
    tokens = [path for path in tokens if path[-1] not in (DOCUMENTS, POSITIONS)]
    inputs = [path for path in tokens if not _is_structure(tensors[path], documents)]
    return Inputs(documents.total, dict.fromkeys(inputs or tokens, 0), (), shapes, documents)


def packed_rows_in(batch: Any, documents: Documents) -> dict[KeyPath, Tensor]:
    """Return the tensors of a batch that hold tokens, by key path, laid out by document, ``[N, longest, ...]``."""
    examples = Examples(documents.total, (), documents)
    return {
        path: next(candidates(value.shape, examples)).split(value, examples)
        for path, value in tensors_in(batch).items()
        if isinstance(value, Tensor) and _leading(value.shape, documents)
    }


def _runs(path: KeyPath, numbers: Tensor, tensors: Mapping[KeyPath, Tensor]) -> Tensor:
    """Number the runs of tokens that belong together, ``[R, T]``; -1 for those that are certainly padding."""
    numbers = numbers.reshape(-1, numbers.shape[-1])
    begins = torch.ones_like(numbers, dtype=torch.bool)
    mask = tensors.get((*path[:-1], _MASK))
    padding = torch.zeros_like(begins)
    if path[-1] == DOCUMENTS:
        begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        padding = numbers < 0
    else:
        if mask is not None and mask.shape == numbers.shape:
            padding = mask == 0
        begins[:, 1:] = (numbers[:, 1:] <= numbers[:, :-1]) | padding[:, :-1]
    return (begins.flatten().cumsum(0).view(begins.shape) - 1).masked_fill(padding, -1)


def _without_unlabelled(path: KeyPath, runs: Tensor, tensors: Mapping[KeyPath, Tensor]) -> Tensor:
    """Leave out the runs at the end of each row that may be padding, although nothing says so."""
    if path[-1] == DOCUMENTS:
        return runs
    labels = tensors.get((*path[:-1], _LABELS))
    is_labelled = labels != _IGNORED if labels is not None and labels.shape == runs.shape else None
    kept = runs.clone()
    for row, of_row in enumerate(runs):
        for run in reversed(of_row[of_row >= 0].unique().tolist()):
            in_run = of_row == run
            if int(in_run.sum()) > 1 if is_labelled is None else bool(is_labelled[row][in_run].any()):
                break
            kept[row][in_run] = -1
    return kept


def _numbered(runs: Tensor) -> Tensor:
    """Number runs from 0 on, in order."""
    numbers, owners = runs.unique(return_inverse=True)
    return owners - int((numbers < 0).sum())


def _leading(shape: tuple[int, ...], documents: Documents) -> bool:
    """Whether rows and tokens, or the tokens of all rows in turn, are the leading axes of a tensor."""
    places = documents.places(shape)
    return (0, 1) in places or 0 in places


def _holds_tokens(path: KeyPath, numbers: Tensor, tensors: Mapping[KeyPath, Tensor]) -> bool:
    """Whether the batch has other tensors of the same rows and tokens."""
    shape = tuple(numbers.shape)
    return any(tuple(value.shape[: len(shape)]) == shape for other, value in tensors.items() if other != path)


def _is_structure(value: Tensor, documents: Documents) -> bool:
    """Whether a tensor says where documents are, rather than what they are."""
    if list(value.shape).count(documents.owners.shape[1]) > 1:
        return True
    if value.is_floating_point() or value.is_complex() or value.numel() != documents.owners.numel():
        return False
    owners = documents.flat
    flat = value.flatten().to(torch.int64)[owners >= 0]
    owners = owners[owners >= 0]
    least = torch.full((documents.total,), torch.iinfo(torch.int64).max).scatter_reduce(0, owners, flat, "amin")
    return bool((flat == least[owners]).all())


def _as_tensor(value: Any) -> Tensor:
    """Return a tensor on the CPU; empty for an array that can't be one."""
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value) if value.dtype.kind in "biuf" else torch.empty(0)
    return value.detach().cpu()

"""Packed rows: which tokens of a batch belong to which document, and which of its tensors hold tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrace.gradients import Documents, Examples, candidates
from ftrace.online.rehearsal.exchange import IGNORED, Inputs, KeyPath, tensors_in

DOCUMENTS, POSITIONS = "document_ids", "position_ids"
Values = Tensor | np.ndarray
_INPUTS, _MASK, _LABELS = "input_ids", "attention_mask", "labels"


def find_documents(batch: Any, count: int, id_key: str | int, who: str, *, always: bool = False) -> Documents | None:
    """Find the documents of a batch, where these are its examples.

    ``document_ids`` have a number for each token, the same for all tokens of a document, another one for the next, and
    a negative one for padding. Without these, ``position_ids`` begin anew with each document: a document ends where
    they don't grow. Padding is then where ``attention_mask`` is 0; and documents at the end of a row that have no label
    (without ``labels``: that have one token) are padding where the number of ids says so. They add nothing to the
    gradient.

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
    tensors = tensors_in(batch)
    path = next((path for path, value in tensors.items() if _tells_documents(path, value, count)), None)
    path = path or next(
        (path for path, value in tensors.items() if path[-1:] == (POSITIONS,) and value.ndim == 2), None
    )
    numbers = None if path is None else _as_tensor(tensors[path])
    if path is None or numbers is None or numbers.is_floating_point() or not numbers.numel():
        return None
    runs = _runs(path, numbers, tensors)
    doubtful = [] if path[-1] == DOCUMENTS else _unlabelled(path, runs, tensors)
    in_doubt = {run for of_row in doubtful for run in of_row}
    certain = [run for run in runs[runs >= 0].unique().tolist() if run not in in_doubt]
    least, most, rows = len(certain), len(certain) + len(in_doubt), len(runs)
    if count in (least, most) or (least < count < most and sum(map(bool, doubtful)) == 1):
        kept = {*certain, *sorted(in_doubt)[: count - least]}
        owners = _numbered(runs, kept)
        if always or count != rows or int((owners >= 0).any(1).sum()) < count:
            labels = _beside(path, _LABELS, owners.shape, tensors)
            return Documents(owners, count, None if labels is None else labels != IGNORED)
    if rows % count and _has_several(runs, certain) and _holds_tokens(path, numbers, tensors):
        more = "" if least == most else f" ({most} with those that have no label, at the ends of rows)"
        raise ValueError(
            f'{who}: the batch has {count} ids under "{id_key}", but {least} documents in {rows} packed rows{more}, '
            f'told apart by "{path[-1]}". Give an id for each document, in their order, row by row from left to '
            "right; or one for each row, which is the example then. Documents of one example, such as a pair, may have "
            f'the same id. Where padding is taken for a document, give "{DOCUMENTS}", -1 for padding'
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
    same for all tokens of a document, masks, and what has two axes of tokens.
    """
    tensors = tensors_in(batch)
    shapes = {path: tuple(value.shape) for path, value in tensors.items()}
    tokens = [path for path, shape in shapes.items() if _leading(shape, documents)]
    tokens = [path for path in tokens if path[-1] not in (DOCUMENTS, POSITIONS)]
    inputs = [path for path in tokens if path[-1] == _INPUTS or not _is_structure(path, tensors[path], documents)]
    return Inputs(documents.total, dict.fromkeys(inputs or tokens, 0), (), shapes, documents)


def packed_rows_in(batch: Any, documents: Documents) -> dict[KeyPath, Tensor]:
    """Return the tensors of a batch that hold tokens, by key path, laid out by document, ``[N, longest, ...]``."""
    examples = Examples(documents.total, (), documents)
    return {
        path: next(candidates(value.shape, examples)).split(value, examples)
        for path, value in tensors_in(batch).items()
        if isinstance(value, Tensor) and _leading(value.shape, documents)
    }


def _tells_documents(path: KeyPath, value: Values, count: int) -> bool:
    """Whether a tensor is that of documents' numbers; rather than a column of that name, with a number for each row."""
    return path[-1:] == (DOCUMENTS,) and (value.ndim == 2 or (value.ndim == 1 and len(value) != count))


def _runs(path: KeyPath, numbers: Tensor, tensors: Mapping[KeyPath, Values]) -> Tensor:
    """Number the runs of tokens that belong together, ``[R, T]``; -1 for those that are certainly padding."""
    numbers = numbers.reshape(-1, numbers.shape[-1])
    begins = torch.ones_like(numbers, dtype=torch.bool)
    mask = _beside(path, _MASK, numbers.shape, tensors)
    padding = torch.zeros_like(begins)
    if path[-1] == DOCUMENTS:
        begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        padding = numbers < 0
    else:
        padding = padding if mask is None else mask == 0
        begins[:, 1:] = (numbers[:, 1:] <= numbers[:, :-1]) | padding[:, :-1]
    return (begins.flatten().cumsum(0).view(begins.shape) - 1).masked_fill(padding, -1)


def _unlabelled(path: KeyPath, runs: Tensor, tensors: Mapping[KeyPath, Values]) -> list[list[int]]:
    """List the runs at the end of each row, from left to right, that may be padding, although nothing says so."""
    labels = _beside(path, _LABELS, runs.shape, tensors)
    is_labelled = None if labels is None else labels != IGNORED
    doubtful: list[list[int]] = []
    for row, of_row in enumerate(runs):
        doubtful.append([])
        for run in reversed(of_row[of_row >= 0].unique().tolist()):
            in_run = of_row == run
            if int(in_run.sum()) > 1 if is_labelled is None else bool(is_labelled[row][in_run].any()):
                break
            doubtful[-1].insert(0, run)
    return doubtful


def _beside(path: KeyPath, key: str, shape: torch.Size, tensors: Mapping[KeyPath, Values]) -> Tensor | None:
    """Return the tensor of that shape under another key of the same part of a batch."""
    value = tensors.get((*path[:-1], key))
    return _as_tensor(value) if value is not None and tuple(value.shape) == tuple(shape) else None


def _has_several(runs: Tensor, documents: Collection[int]) -> bool:
    """Whether some row has several documents."""
    return any(len(set(of_row.tolist()).intersection(documents)) > 1 for of_row in runs)


def _numbered(runs: Tensor, kept: Collection[int]) -> Tensor:
    """Number the runs that are documents from 0 on, in order; -1 for the others."""
    numbers = torch.full((int(runs.max()) + 1,), -1, dtype=torch.int64)
    numbers[sorted(kept)] = torch.arange(len(kept))
    return torch.where(runs >= 0, numbers[runs.clamp_min(0)], -1)


def _leading(shape: tuple[int, ...], documents: Documents) -> bool:
    """Whether rows and tokens, or the tokens of all rows in turn, are the leading axes of a tensor."""
    places = documents.places(shape)
    return (0, 1) in places or 0 in places


def _holds_tokens(path: KeyPath, numbers: Tensor, tensors: Mapping[KeyPath, Values]) -> bool:
    """Whether the batch has other tensors of the same rows and tokens."""
    shape = tuple(numbers.shape)
    return any(tuple(value.shape[: len(shape)]) == shape for other, value in tensors.items() if other != path)


def _is_structure(path: KeyPath, values: Values, documents: Documents) -> bool:
    """Whether a tensor says where documents are, rather than what they are."""
    if list(values.shape).count(documents.owners.shape[1]) > 1:
        return True
    value = _as_tensor(values)
    if value.dtype == torch.bool or "mask" in str(path[-1]):
        return True
    if value.is_floating_point() or value.is_complex() or value.numel() != documents.owners.numel():
        return False
    owners = documents.flat
    flat = value.flatten().to(torch.int64)[owners >= 0]
    owners = owners[owners >= 0]
    least = torch.full((documents.total,), torch.iinfo(torch.int64).max).scatter_reduce(0, owners, flat, "amin")
    return bool((flat == least[owners]).all())


def _as_tensor(value: Values) -> Tensor:
    """Return a tensor on the CPU; empty for an array that can't be one."""
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value) if value.dtype.kind in "biuf" else torch.empty(0)
    return value.detach().cpu()

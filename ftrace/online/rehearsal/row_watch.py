"""The watch for training steps that put the rows of a batch in another order than before, without extra passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ftrace.gradients import Examples, Key, LayoutBook, Recording, Shared
from ftrace.online.rehearsal.exchange import KeyPath

_MOST_NUMBERS = 2**24  # elements of the largest input that is compared

# The part of an example's row that a step may pass on to a layer, given the row and the number of elements that arrive.
_CUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "all": lambda row, count: row.flatten(1),
    "all but the last": lambda row, count: row[..., :-1].flatten(1),
    "all but the first": lambda row, count: row[..., 1:].flatten(1),
    "the first": lambda row, count: row.flatten(1)[:, :count],
}


class RowWatch:
    """The comparison, at every step, of the rows that layers are given with those of the batch.

    In a batch that was rehearsed, it is known whose rows are whose. From such a batch it is learned which of its
    tensors arrive at which layers unchanged. If later the same rows arrive in another order, the step has reordered
    them. Other changes, such as added noise, are ignored.
    """

    def __init__(self) -> None:
        self._arrives: dict[Key, tuple[KeyPath, str]] = {}  # by layer, the tensor of the batch and the cut of its rows
        self._moved: list[tuple[Key, Tensor]] = []
        self._learns = True

    def learn(self) -> None:
        """Learn anew, from the training step of the batch that was just rehearsed."""
        self._arrives.clear()
        self._learns = True

    def watch(self, recording: Recording, tensors: Callable[[], Mapping[KeyPath, Tensor]], book: LayoutBook) -> None:
        """Compare what layers are given in a pass.

        Args:
            recording: The recording of the training step.
            tensors: Returns the batch's tensors that hold examples, ``[B, ...]`` each, by key path.
            book: Whose rows are whose.
        """
        examples, learns = recording.examples, self._learns
        self._learns = False
        if examples.total < 2 or examples.loaders or not (learns or self._arrives):
            return
        of_batch = tensors()

        def arrived(key: Key, inputs: Tensor) -> None:
            if key in self._arrives or learns:
                rows = _rows_of(inputs, key, book, examples)
                if rows is not None:
                    self._compare(key, rows, of_batch, learns)

        recording.of_pass.arrived = arrived

    def _compare(self, key: Key, rows: Tensor, tensors: Mapping[KeyPath, Tensor], learns: bool) -> None:
        if learns:
            for path, tensor in tensors.items():
                for cut in _CUTS:
                    expected = _cut(tensor, cut, rows)
                    if expected is not None and bool((expected == rows).all()):
                        self._arrives[key] = path, cut
                        return
            return
        path, cut = self._arrives[key]
        expected = _cut(tensors[path], cut, rows) if path in tensors else None
        if expected is not None:
            sums, expected_sums = _sums(rows), _sums(expected)
            is_same_set = (sums.sort().values == expected_sums.sort().values).all()
            self._moved.append((key, (sums != expected_sums).any() & is_same_set))

    def moved(self) -> list[Key]:
        """Return the layers at which rows have arrived in another order since the last call."""
        flags, self._moved = self._moved, []
        return [key for key, is_moved in flags if bool(is_moved)]


def _rows_of(inputs: Tensor, key: Key, book: LayoutBook, examples: Examples) -> Tensor | None:
    """Return what a layer is given by example, ``[B, n]``; None if it isn't known or too large."""
    layout = book.known.get(key)
    if layout is None or isinstance(layout, Shared) or inputs.numel() > _MOST_NUMBERS:
        return None
    if not layout.fits(inputs.shape, examples):
        return None
    return layout.split(inputs.detach(), examples).flatten(1)


def _cut(tensor: Tensor, cut: str, rows: Tensor) -> Tensor | None:
    if tensor.ndim < 2 and cut not in ("all", "the first"):
        return None
    part = _CUTS[cut](tensor.reshape(len(tensor), -1) if tensor.ndim < 2 else tensor, rows.shape[1])
    return part.to(rows.dtype) if part.shape == rows.shape and part.numel() else None


def _sums(rows: Tensor) -> Tensor:
    """Compute a checksum of each row, equal for equal rows, ``[B]``."""
    weights = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.float32).sqrt()
    return (rows.to(torch.float32) * weights).sum(1)

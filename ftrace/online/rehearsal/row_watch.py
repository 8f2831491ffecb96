"""Sees, without a pass of its own, whether the training step puts the batch's rows in another order than before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ftrace.gradients import Examples, Key, LayoutBook, Recording, Shared
from ftrace.online.rehearsal.exchange import Place

_MOST_NUMBERS = 2**24  # of an input that is looked at

# What a step may take of a row before it gives it to a layer: the row of the batch, and as many numbers as arrive.
_CUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "all": lambda row, count: row.flatten(1),
    "all but the last": lambda row, count: row[..., :-1].flatten(1),
    "all but the first": lambda row, count: row[..., 1:].flatten(1),
    "the first": lambda row, count: row.flatten(1)[:, :count],
}


class RowWatch:
    """Where the rows of a batch are given to layers as they are, holds them against the batch at every step.

    In the batch that has been rehearsed, whose rows are whose is known. Which tensors of the batch arrive at which
    layers is learned there. Later on, rows that arrive in another order have been moved by the step. What it does to
    the numbers within a row, such as adding noise, says nothing.
    """

    def __init__(self) -> None:
        self._arrives: dict[Key, tuple[Place, str]] = {}  # which tensor of the batch, and what of its rows
        self._moved: list[tuple[Key, Tensor]] = []
        self._learns = True

    def learn(self) -> None:
        """A batch has been rehearsed: learn from its training step."""
        self._arrives.clear()
        self._learns = True

    def watch(self, recording: Recording, tensors: Callable[[], Mapping[Place, Tensor]], book: LayoutBook) -> None:
        """Look at what arrives at layers in a pass.

        Args:
            recording: Of the training step.
            tensors: Gives the batch's own, ``[B, ...]`` each, by place.
            book: Whose rows are whose.
        """
        examples, learns = recording.examples, self._learns
        self._learns = False
        if examples.total < 2 or examples.loaders or not (learns or self._arrives):
            return
        own = tensors()

        def arrived(key: Key, inputs: Tensor) -> None:
            if key in self._arrives or learns:
                rows = _rows_of(inputs, key, book, examples)
                if rows is not None:
                    self._see(key, rows, own, learns)

        recording.of_pass.arrived = arrived

    def _see(self, key: Key, rows: Tensor, tensors: Mapping[Place, Tensor], learns: bool) -> None:
        if learns:
            for place, tensor in tensors.items():
                for cut in _CUTS:
                    expected = _cut(tensor, cut, rows)
                    if expected is not None and bool((expected == rows).all()):
                        self._arrives[key] = place, cut
                        return
            return
        place, cut = self._arrives[key]
        expected = _cut(tensors[place], cut, rows) if place in tensors else None
        if expected is not None:
            own, given = _sums(rows), _sums(expected)
            self._moved.append((key, (own != given).any() & (own.sort().values == given.sort().values).all()))

    def moved(self) -> list[Key]:
        """Layers at which rows have arrived in another order since this was asked last."""
        found, self._moved = self._moved, []
        return [key for key, flag in found if bool(flag)]


def _rows_of(inputs: Tensor, key: Key, book: LayoutBook, examples: Examples) -> Tensor | None:
    """What a layer is given, by example, ``[B, n]``."""
    layout = book.known.get(key)
    if layout is None or isinstance(layout, Shared) or inputs.numel() > _MOST_NUMBERS:
        return None
    if not layout.fits(inputs.shape, examples):
        return None
    return layout.split(inputs.detach(), examples).flatten(1)


def _cut(tensor: Tensor, cut: str, rows: Tensor) -> Tensor | None:
    if tensor.ndim < 2 and cut not in ("all", "the first"):
        return None
    found = _CUTS[cut](tensor.reshape(len(tensor), -1) if tensor.ndim < 2 else tensor, rows.shape[1])
    return found.to(rows.dtype) if found.shape == rows.shape and found.numel() else None


def _sums(rows: Tensor) -> Tensor:
    """A number for each row, equal for equal rows, ``[B]``."""
    weights = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.float32).sqrt()
    return (rows.to(torch.float32) * weights).sum(1)

"""Layouts: which example each slice of a tensor belongs to. Examples run along one axis, in one of a few orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """The examples of a batch.

    Args:
        total: Their number.
        loaders: Sizes of the batches of several dataloaders that they come from, in order; empty where it is one batch.
    """

    total: int
    loaders: tuple[int, ...] = ()

    def count(self, loader: int | None) -> int:
        """Count the examples of one dataloader; of all, where that is None."""
        return self.total if loader is None else self.loaders[loader]

    def first(self, loader: int | None) -> int:
        """Get the index of a dataloader's first example."""
        return 0 if loader is None else sum(self.loaders[:loader])


@dataclass(frozen=True)
class Layout:
    """Order of examples along one axis: ``before`` blocks of all examples, each with ``after`` slices side by side.

    A slice's example is ``(index // after) % count``. One of ``before`` and ``after`` is given. The other is None, and
    follows from the axis's length.

    Args:
        before: Blocks; 1 where each example's slices are side by side.
        after: Slices of an example within a block; 1 where the order is that of ``torch.cat([chosen, rejected])``.
        loader: The dataloader whose examples these are; None: all dataloaders.
    """

    axis: int = 0
    before: int | None = 1
    after: int | None = None
    loader: int | None = None

    def __str__(self) -> str:
        of_loader = "" if self.loader is None else f" of dataloader {self.loader}"
        if self.before == 1:
            order = "side by side"
        elif self.after == 1:
            order = "in blocks"
        else:
            order = f"in {self.before} blocks" if self.after is None else f"in blocks, {self.after} side by side"
        return f"{order} along axis {self.axis}{of_loader}"

    def factors(self, length: int, count: int) -> tuple[int, int] | None:
        """Compute ``before`` and ``after`` for an axis of that length; None where it can't have this layout."""
        if not count:
            return (1, 0) if not length else None
        rest, remainder = divmod(length, count)
        given = self.before or self.after
        if remainder or given is None or rest % given:
            return None
        return (rest // given, given) if self.before is None else (given, rest // given)

    def fits(self, shape: Sequence[int], examples: Examples) -> bool:
        """Whether a tensor of that shape can have this layout."""
        if self.axis >= len(shape) or (self.loader is not None and self.loader >= len(examples.loaders)):
            return False
        return self.factors(shape[self.axis], examples.count(self.loader)) is not None

    def slices(self, shape: Sequence[int], examples: Examples) -> int:
        """Count the slices that each example has in a tensor of that shape."""
        return shape[self.axis] // max(1, examples.count(self.loader))

    def says_the_same(self, other: Layout, shape: Sequence[int], examples: Examples) -> bool:
        """Whether two layouts that fit a shape give each of its slices to the same example."""
        length = shape[self.axis]
        return self.axis == other.axis and torch.equal(self.owners(length, examples), other.owners(length, examples))

    def split(self, tensor: Tensor, examples: Examples) -> Tensor:
        """Split a tensor into its examples, ``[count, ...]``: each has the tensor's axes, with its own slices."""
        count = examples.count(self.loader)
        before, after = self._factors(tensor, count)
        by_example = tensor.unflatten(self.axis, (before, count, after)).movedim(self.axis + 1, 0)
        return by_example.flatten(self.axis + 1, self.axis + 2)

    def join(self, split: Tensor, examples: Examples, length: int) -> Tensor:
        """Undo :meth:`split`; ``length`` is that of the examples' axis."""
        factors = self.factors(length, examples.count(self.loader))
        assert factors is not None
        parts = split.unflatten(self.axis + 1, factors).movedim(0, self.axis + 1)
        return parts.flatten(self.axis, self.axis + 2)

    def owners(self, length: int, examples: Examples) -> Tensor:
        """Find the example of each slice along the axis, ``[length]`` int64."""
        count = examples.count(self.loader)
        factors = self.factors(length, count)
        assert factors is not None
        return (torch.arange(length) // max(1, factors[1])) % max(1, count) + examples.first(self.loader)

    def only(self, tensor: Tensor, example: int, examples: Examples) -> Tensor:
        """Set all slices but one example's to zero."""
        return self.choose(tensor, torch.arange(examples.total) == example, examples)

    def choose(self, tensor: Tensor, chosen: Tensor, examples: Examples) -> Tensor:
        """Set the slices of examples that are not chosen (``[B]`` bool) to zero."""
        kept = chosen[self.owners(tensor.shape[self.axis], examples)].to(tensor.device)
        shape = [1] * tensor.ndim
        shape[self.axis] = -1
        return torch.where(kept.view(shape), tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))

    def _factors(self, tensor: Tensor, count: int) -> tuple[int, int]:
        factors = self.factors(tensor.shape[self.axis], count)
        assert factors is not None, (self, tensor.shape, count)
        return factors


SIDE_BY_SIDE = Layout()


def candidates(shape: Sequence[int], examples: Examples) -> Iterator[Layout]:
    """Yield all layouts that a tensor of that shape can have, the most common ones first."""
    loaders: list[int | None] = [None, *range(len(examples.loaders))] if len(examples.loaders) > 1 else [None]
    for axis, length in enumerate(shape):
        for loader in loaders:
            count = examples.count(loader)
            if not count or not length or length % count:
                continue
            each = length // count
            if count == 1:  # has all there is, along any axis
                if axis == 0:
                    yield Layout(loader=loader)
                continue
            yield Layout(axis, loader=loader)
            if each > 1:
                yield Layout(axis, before=None, after=1, loader=loader)
            for before in range(2, each):
                if each % before == 0:  # the smaller number is the one that stays in tensors of other shapes
                    after = each // before
                    yield Layout(axis, before, None, loader) if before <= after else Layout(axis, None, after, loader)


def by_example(tensor: Tensor, layout: Layout, examples: Examples, last: int = 1) -> Tensor:
    """Lay each example's positions out in a row: ``[count, T, *last axes]``.

    Args:
        tensor: ``[..., *last axes]``.
        layout: Of the axes before the last ones.
        examples: Of the batch.
        last: Number of last axes that are kept as they are.
    """
    kept = tensor.shape[tensor.ndim - last :]
    count = examples.count(layout.loader)
    if count == 1:
        return tensor.reshape(1, -1 if tensor.numel() else 0, *kept)
    split = layout.split(tensor, examples)
    positions = 1
    for length in split.shape[1 : split.ndim - last]:
        positions *= length
    return split.reshape(count, positions, *kept)

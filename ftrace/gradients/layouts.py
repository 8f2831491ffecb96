"""Layouts: which example each slice of a tensor belongs to.

Examples run along one axis, in one of a few orders; or they are documents of packed rows, so that tokens, along one
axis or two, are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftrace.gradients.documents import ALL, Documents, Place, Tokens, belongs


@dataclass(frozen=True)
class Examples:
    """The examples of a batch.

    Args:
        total: Their number.
        loaders: Sizes of the batches of several dataloaders that they come from, in order; empty where it is one batch.
        documents: The tokens of each, where examples are documents that are packed into rows.
    """

    total: int
    loaders: tuple[int, ...] = ()
    documents: Documents | None = None

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

    @property
    def place(self) -> Place:
        """The axis, or the axes, along which examples are told apart."""
        return self.axis

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
        documents = examples.documents
        if documents is not None and (shape[self.axis] != examples.total or self.axis in documents.axes(shape)):
            return False  # along an axis of tokens, or of packed rows
        return self.factors(shape[self.axis], examples.count(self.loader)) is not None

    def slices(self, shape: Sequence[int], examples: Examples) -> int:
        """Count the slices that each example has in a tensor of that shape."""
        return shape[self.axis] // max(1, examples.count(self.loader))

    def says_the_same(self, other: Layout, shape: Sequence[int], examples: Examples) -> bool:
        """Whether two layouts that fit a shape give each of its slices to the same example."""
        return self.place == other.place and torch.equal(
            self.owners_in(shape, examples), other.owners_in(shape, examples)
        )

    def coincides(self, other: Layout, slices: int) -> bool:
        """Whether two layouts are in the same order where each example has that many slices."""
        same_axis = type(self) is type(other) and self.axis == other.axis and self.loader == other.loader
        return same_axis and self.factors(slices, 1) == other.factors(slices, 1)

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

    def owners_in(self, shape: Sequence[int], examples: Examples) -> Tensor:
        """Find the example of each slice along :attr:`place`, of a tensor of that shape; -1 for padding."""
        return self.owners(shape[self.axis], examples)

    def only(self, tensor: Tensor, example: int, examples: Examples) -> Tensor:
        """Set all slices but one example's to zero."""
        return self.choose(tensor, torch.arange(examples.total) == example, examples)

    def choose(self, tensor: Tensor, chosen: Tensor, examples: Examples) -> Tensor:
        """Set the slices of examples that are not chosen (``[B]`` bool) to zero."""
        kept = self._spread(belongs(chosen, self.owners_in(tensor.shape, examples)).to(tensor.device), tensor)
        return torch.where(kept, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))

    def _spread(self, of_slices: Tensor, tensor: Tensor) -> Tensor:
        """Give a value of each slice along :attr:`place` the tensor's axes."""
        shape = [1] * tensor.ndim
        shape[self.axis] = -1
        return of_slices.view(shape)

    def _factors(self, tensor: Tensor, count: int) -> tuple[int, int]:
        factors = self.factors(tensor.shape[self.axis], count)
        assert factors is not None, (self, tensor.shape, count)
        return factors


@dataclass(frozen=True)
class PackedLayout(Layout):
    """Tokens of packed rows, each of which belongs to a document; :class:`Examples` says to which.

    Args:
        axis: That of the tokens.
        rows: The axis of the rows; None where all rows' tokens are in turn along ``axis``.
        part: The tokens that there are, of :attr:`Documents.parts`.
    """

    rows: int | None = None
    part: str = ALL

    def __str__(self) -> str:
        rows = "" if self.rows is None else f", rows along {self.rows}"
        return f"by document, {self.part} along axis {self.axis}{rows}"

    @property
    def place(self) -> Place:
        """The axis, or the axes, along which examples are told apart."""
        return self.axis if self.rows is None else (self.rows, self.axis)

    def fits(self, shape: Sequence[int], examples: Examples) -> bool:
        """Whether a tensor of that shape can have this layout."""
        if examples.documents is None or self.part not in examples.documents.parts:
            return False
        return self.place in self._tokens(examples).places(shape)

    def slices(self, shape: Sequence[int], examples: Examples) -> int:
        """Count the rows: one row alone doesn't tell in which order several would be."""
        return len(_documents(examples).owners)

    def coincides(self, other: Layout, slices: int) -> bool:
        """Whether two layouts are in the same order, whatever the number of rows."""
        return self == other

    def split(self, tensor: Tensor, examples: Examples) -> Tensor:
        """Split a tensor into its documents, ``[N, longest, ...]``, with zeros behind the shorter ones."""
        if self.rows is None:
            tokens = tensor.movedim(self.axis, 0)
        else:
            tokens = tensor.movedim((self.rows, self.axis), (0, 1)).flatten(0, 1)
        return self._tokens(examples).lay_out(tokens)

    def owners_in(self, shape: Sequence[int], examples: Examples) -> Tensor:
        """Find the example of each token, all rows in turn; -1 for padding."""
        return self._tokens(examples).flat

    def has_padding(self, tensor: Tensor, examples: Examples) -> bool:
        """Whether a tensor isn't zero where rows are padded."""
        padding = self._spread((self._tokens(examples).flat < 0).to(tensor.device), tensor)
        return bool((tensor.ne(0) & padding).any())

    def _tokens(self, examples: Examples) -> Tokens:
        return _documents(examples).parts[self.part]

    def _spread(self, of_slices: Tensor, tensor: Tensor) -> Tensor:
        if self.rows is None:
            return super()._spread(of_slices, tensor)
        shape = [1] * tensor.ndim
        shape[self.rows], shape[self.axis] = tensor.shape[self.rows], tensor.shape[self.axis]
        by_row = of_slices.view(tensor.shape[self.rows], tensor.shape[self.axis])
        return (by_row if self.rows < self.axis else by_row.T).reshape(shape)


def _documents(examples: Examples) -> Documents:
    assert examples.documents is not None
    return examples.documents


SIDE_BY_SIDE = Layout()


def candidates(shape: Sequence[int], examples: Examples) -> Iterator[Layout]:
    """Yield all layouts that a tensor of that shape can have, the most common ones first."""
    if examples.documents is not None:
        yield from _of_documents(shape, examples, examples.documents)
        return
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


def _of_documents(shape: Sequence[int], examples: Examples, documents: Documents) -> Iterator[Layout]:
    """Yield the layouts of a tensor of packed rows, or of one number per document, such as their last tokens."""
    for name, part in documents.parts.items():
        for place in part.places(shape):
            rows, axis = (None, place) if isinstance(place, int) else place
            yield PackedLayout(axis, rows=rows, part=name)
    yield from (layout for layout in map(Layout, range(len(shape))) if layout.fits(shape, examples))


def by_example(tensor: Tensor, layout: Layout, examples: Examples, last: int = 1) -> Tensor:
    """Lay each example's positions out in a row: ``[count, T, *last axes]``; zeros where a document has fewer.

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

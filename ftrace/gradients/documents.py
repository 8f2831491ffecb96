"""Documents of packed rows: which tokens of a batch belong to which example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Place = int | tuple[int, int]  # the axis, or the axes, of a tensor along which examples are told apart


ALL = "all tokens"


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of documents that are packed into rows, or some of them.

    Args:
        owners: The example of each token, ``[R, T]``, or of a selection ``[S]``, int64, on the CPU; -1 for padding,
            which is of no example.
        total: The number of examples.
    """

    owners: Tensor
    total: int

    def pairs(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """List the pairs of axes of a tensor that may be rows and tokens, in this order; the usual ones first."""
        if self.owners.ndim < 2:
            return []
        rows, tokens = self.owners.shape
        of_tokens = [axis for axis, length in enumerate(shape) if length == tokens]
        of_rows = [axis for axis, length in enumerate(shape) if length == rows] if of_tokens else []
        found = [(row, token) for row in of_rows for token in of_tokens if row != token]
        return sorted(found, key=lambda pair: (pair[0] > pair[1], pair))

    def places(self, shape: Sequence[int]) -> list[Place]:
        """List where a tensor of that shape may hold tokens: pairs of axes, or one axis of all rows' tokens in turn."""
        pairs = self.pairs(shape)
        in_pairs = {axis for pair in pairs for axis in pair}
        flat = [axis for axis, length in enumerate(shape) if length == self.owners.numel() and axis not in in_pairs]
        return [*pairs, *flat]

    def axes(self, shape: Sequence[int]) -> set[int]:
        """Find the axes of a tensor that may hold these tokens, or rows of them."""
        return {axis for place in self.places(shape) for axis in (place if isinstance(place, tuple) else (place,))}

    @cached_property
    def flat(self) -> Tensor:
        """The example of each token, all rows in turn."""
        return self.owners.flatten()

    @cached_property
    def lengths(self) -> Tensor:
        """The number of tokens of each example, ``[N]``."""
        return torch.bincount(self.flat[self.flat >= 0], minlength=self.total)

    @cached_property
    def _order(self) -> Tensor:
        """Indices of the tokens of all examples in turn."""
        order = self.flat.argsort(stable=True)
        return order[len(order) - int(self.lengths.sum()) :]

    @cached_property
    def _begins(self) -> Tensor:
        """Where each example's tokens begin in that order, ``[N]``."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def has_padding(self) -> bool:
        """Whether some token is of no example."""
        return bool((self.flat < 0).any())

    @cached_property
    def _offsets(self) -> Tensor:
        """The place of each token, in that order, within its document."""
        return torch.arange(len(self._order)) - self._begins[self.flat[self._order]]

    @cached_property
    def _longest(self) -> int:
        return int(self.lengths.max()) if self.total else 0

    @cached_property
    def _moves(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        """By device, from where to where tokens go when they are laid out."""
        return {}

    def lay_out(self, tokens: Tensor) -> Tensor:
        """Lay each example's tokens out side by side, with zeros behind those of shorter ones.

        Args:
            tokens: ``[R * T, ...]``, or ``[S, ...]``.

        Returns:
            ``[N, longest, ...]``.
        """
        rest = tokens.shape[1:]
        if tokens.device not in self._moves:
            slots = self.flat[self._order] * self._longest + self._offsets
            self._moves[tokens.device] = self._order.to(tokens.device), slots.to(tokens.device)
        order, slots = self._moves[tokens.device]
        laid_out = tokens.new_zeros(self.total * self._longest, *rest)
        laid_out[slots] = tokens.index_select(0, order)
        return laid_out.reshape(self.total, self._longest, *rest)

    def exchanged(self, sources: Sequence[int]) -> Tensor:
        """Find which token each token is exchanged for, ``[R * T]``, where documents keep their lengths.

        A document gets its source's tokens in order, and again from the start where that is shorter.

        Args:
            sources: By example, the one whose tokens it gets; -1: its own, rotated by one.
        """
        given = torch.tensor(list(sources), dtype=torch.int64)
        own = self.flat[self._order]
        source = torch.where(given[own] < 0, own, given[own])
        offsets = (self._offsets + (given[own] < 0)) % self.lengths[source]
        index = torch.arange(self.flat.numel())
        index[self._order] = self._order[self._begins[source] + offsets]
        return index


@dataclass(frozen=True, eq=False)
class Documents(Tokens):
    """Documents that are packed into the rows of a batch, each of which is an example.

    Args:
        labelled: ``[R, T]`` bool: the tokens that have a label. A head may run on those alone that predict one.
    """

    labelled: Tensor | None = None

    @cached_property
    def parts(self) -> dict[str, Tokens]:
        """The tokens that a layer's tensor may hold, by what they are called; the usual ones first."""
        before, after = self.owners[:, :-1], self.owners[:, 1:]
        parts: dict[str, Tokens] = {ALL: self}
        if before.numel():
            parts |= {"all but the last": Tokens(before, self.total), "all but the first": Tokens(after, self.total)}
        if self.labelled is not None:
            parts["those before a label"] = Tokens(before[self.labelled[:, 1:]], self.total)
        return parts

    def all_pairs(self, shape: Sequence[int]) -> set[tuple[int, int]]:
        """List the pairs of axes of a tensor that may be rows and some of their tokens."""
        return {pair for part in self.parts.values() for pair in part.pairs(shape)}


def belongs(flags: Tensor, owners: Tensor) -> Tensor:
    """Look up a flag of each slice's example, False for slices of none (-1).

    Args:
        flags: ``[N]`` bool.
        owners: The example of each slice.
    """
    return flags[owners.clamp_min(0)] & (owners >= 0) if len(flags) else torch.zeros_like(owners, dtype=torch.bool)

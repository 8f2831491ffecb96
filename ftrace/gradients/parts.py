"""Per-example gradients of one parameter, in the factored form that a layer's backward pass leaves behind.

Nothing here is formed that need not be: a matrix product's gradient stays a pair of activations, an embedding's
stays a list of row numbers. Every part can be made dense, and any two parts that are still factored can be
multiplied without it (the "gram" or "ghost" product).

Shape letters: B examples, T places in an example that are summed over (tokens), R rows and C columns of the
parameter, Q and S the same as B and T on the query side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """``grad[b] = sum_t rows[b, t] ⊗ columns[b, t]``: what a matrix product leaves.

    Args:
        rows: ``[B, T, R]``, whatever multiplies the parameter's first axis.
        columns: ``[B, T, C]``, whatever multiplies its second axis.
    """

    rows: Tensor
    columns: Tensor

    def dense(self, out: Tensor | None = None) -> Tensor:
        """The gradients themselves, ``[B, R, C]``, optionally into memory that is at hand."""
        return torch.bmm(self.rows.transpose(1, 2), self.columns, out=out)

    def add_to(self, dense: Tensor) -> None:
        """Add the gradients to a dense ``[B, R, C]``."""
        dense.baddbmm_(self.rows.transpose(1, 2), self.columns)

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """``sum_b weights[b] * grad[b]``, ``[R, C]``, without forming the gradients."""
        columns = self.columns * weights_B[:, None, None]
        return self.rows.flatten(0, 1).T @ columns.flatten(0, 1)


@dataclass(frozen=True)
class Lookup:
    """``grad[b, ids[b, t]] += columns[b, t]``: what an embedding table leaves.

    Args:
        ids: ``[B, T]`` int64, the rows that were read.
        columns: ``[B, T, C]``, the gradient of what was read.
        num_rows: R, the number of rows of the table.
    """

    ids: Tensor
    columns: Tensor
    num_rows: int

    def dense(self, out: Tensor | None = None) -> Tensor:
        """The gradients themselves, ``[B, R, C]``, optionally into memory that is at hand."""
        B, _, C = self.columns.shape
        dense = self.columns.new_zeros(B, self.num_rows, C) if out is None else out.zero_()
        self.add_to(dense)
        return dense

    def add_to(self, dense: Tensor) -> None:
        """Add the gradients to a dense ``[B, R, C]``."""
        dense.scatter_add_(1, self.ids.unsqueeze(-1).expand_as(self.columns), self.columns)

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """``sum_b weights[b] * grad[b]``, ``[R, C]``, without forming the gradients."""
        columns = self.columns * weights_B[:, None, None]
        total = columns.new_zeros(self.num_rows, columns.shape[-1])
        return total.index_add_(0, self.ids.flatten(), columns.flatten(0, 1))


@dataclass(frozen=True)
class Dense:
    """The gradients themselves: biases and norms, which are too small to factor.

    Args:
        value: ``[B, *parameter.shape]``.
    """

    value: Tensor

    def dense(self, out: Tensor | None = None) -> Tensor:
        """The gradients themselves, ``[B, *parameter.shape]``."""
        return self.value

    def add_to(self, dense: Tensor) -> None:
        """Add the gradients to a dense tensor of the same shape."""
        dense += self.value

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """``sum_b weights[b] * grad[b]``, in the parameter's shape."""
        return torch.tensordot(weights_B, self.value, dims=1)


Part = Outer | Lookup | Dense


def num_places(part: Outer | Lookup) -> int:
    """T, the places that a factored part sums over."""
    return part.columns.shape[1]


def take(part: Part, start: int, stop: int) -> Part:
    """The same part for the examples ``start <= b < stop``."""
    if isinstance(part, Outer):
        return Outer(part.rows[start:stop], part.columns[start:stop])
    if isinstance(part, Lookup):
        return Lookup(part.ids[start:stop], part.columns[start:stop], part.num_rows)
    return Dense(part.value[start:stop])


def merge(parts: list[Part]) -> tuple[Part, ...]:
    """At most one part of each kind, with the same sum: the uses of a shared weight become one list of places."""
    outers = [part for part in parts if isinstance(part, Outer)]
    lookups = [part for part in parts if isinstance(part, Lookup)]
    dense = [part for part in parts if isinstance(part, Dense)]
    merged: list[Part] = []
    if outers:
        rows, columns = [part.rows for part in outers], [part.columns for part in outers]
        merged.append(Outer(torch.cat(rows, 1), torch.cat(columns, 1)) if len(outers) > 1 else outers[0])
    if lookups:
        ids, columns = [part.ids for part in lookups], [part.columns for part in lookups]
        many = len(lookups) > 1
        merged.append(Lookup(torch.cat(ids, 1), torch.cat(columns, 1), lookups[0].num_rows) if many else lookups[0])
    if dense:
        total = dense[0].value
        for part in dense[1:]:
            total = total + part.value
        merged.append(Dense(total))
    return tuple(merged)


def stack_examples(parts: Sequence[Part | None], counts: Sequence[int]) -> Part:
    """One part for the examples of several batches, whose parts are of one kind.

    Args:
        parts: Each batch's part, or None where it has none: zeros, then. Shorter ones are filled up with empty places.
        counts: Each batch's number of examples.
    """
    given = next(part for part in parts if part is not None)
    if isinstance(given, Dense):
        pieces = [given.value.new_zeros(n, *given.value.shape[1:]) for n in counts]
        for index, part in enumerate(parts):
            if isinstance(part, Dense):
                pieces[index] = part.value
        return Dense(torch.cat(pieces))
    factored = [part for part in parts if part is not None and not isinstance(part, Dense)]
    places = max(num_places(part) for part in factored)

    def stacked(tensors: Sequence[Tensor | None]) -> Tensor:
        like = next(tensor for tensor in tensors if tensor is not None)
        total = like.new_zeros(sum(counts), places, *like.shape[2:])
        for tensor, stop in zip(tensors, accumulate(counts), strict=True):
            if tensor is not None:
                total[stop - len(tensor) : stop, : tensor.shape[1]] = tensor
        return total

    columns = stacked([None if part is None or isinstance(part, Dense) else part.columns for part in parts])
    if isinstance(given, Outer):
        return Outer(stacked([part.rows if isinstance(part, Outer) else None for part in parts]), columns)
    return Lookup(stacked([part.ids if isinstance(part, Lookup) else None for part in parts]), columns, given.num_rows)


def gram(examples: Outer | Lookup, queries: Outer | Lookup) -> Tensor:
    """``<grad_b, grad_q>`` for each pair, ``[B, Q]``, from the factors alone.

    ``sum_ts (rows[b,t] . rows[q,s]) (columns[b,t] . columns[q,s])``, where the row of a lookup is one-hot. The cross
    terms of a tied embedding and head are the case of one Lookup and one Outer.
    """
    B, T = examples.columns.shape[:2]
    Q, S = queries.columns.shape[:2]
    pairs = examples.columns.reshape(B * T, -1) @ queries.columns.reshape(Q * S, -1).T
    if isinstance(examples, Lookup) and isinstance(queries, Lookup):
        pairs = pairs * (examples.ids.reshape(-1, 1) == queries.ids.reshape(1, -1))
    elif isinstance(examples, Lookup) and isinstance(queries, Outer):
        pairs = pairs * queries.rows.reshape(Q * S, -1)[:, examples.ids.reshape(-1)].T
    elif isinstance(examples, Outer) and isinstance(queries, Lookup):
        pairs = pairs * examples.rows.reshape(B * T, -1)[:, queries.ids.reshape(-1)]
    elif isinstance(examples, Outer) and isinstance(queries, Outer):
        pairs = pairs * (examples.rows.reshape(B * T, -1) @ queries.rows.reshape(Q * S, -1).T)
    return pairs.view(B, T, Q, S).sum((1, 3))


def own_gram(first: Outer | Lookup, second: Outer | Lookup) -> Tensor:
    """``<grad_b, grad'_b>`` of the same examples' two parts, ``[B]``, from the factors alone."""
    pairs_BTS = first.columns @ second.columns.transpose(1, 2)
    if isinstance(first, Outer) and isinstance(second, Outer):
        pairs_BTS = pairs_BTS * (first.rows @ second.rows.transpose(1, 2))
    elif isinstance(first, Lookup) and isinstance(second, Lookup):
        pairs_BTS = pairs_BTS * (first.ids[:, :, None] == second.ids[:, None, :])
    elif isinstance(first, Lookup) and isinstance(second, Outer):
        index = first.ids[:, None, :].expand(-1, num_places(second), -1)
        pairs_BTS = pairs_BTS * second.rows.gather(2, index).transpose(1, 2)
    else:
        return own_gram(second, first)
    return pairs_BTS.sum((1, 2))

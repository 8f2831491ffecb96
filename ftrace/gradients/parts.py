"""Per-example gradients of one parameter, in the factored form that a layer's backward pass leaves behind.

A gradient is only made dense where that is needed: a matrix product's stays a pair of activations, an embedding's
stays a list of row numbers. Every part can be made dense, and factored parts can be multiplied as they are
(``products.py``).

Factors keep the precision of the pass that they come from; sums over positions are taken in float32 at least.

Shape letters: B examples, T positions in an example that are summed over (tokens), R rows and C columns of the
parameter. A parameter that is not a matrix counts as one: a vector as a single row, a convolution's weight with one
row for each output channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """Part from a matrix product: ``grad[b] = sum_t rows[b, t] ⊗ columns[b, t]``.

    Args:
        rows: ``[B, T, R]``, along the parameter's first axis.
        columns: ``[B, T, C]``, along its second axis.
    """

    rows: Tensor
    columns: Tensor

    def dense(self, out: Tensor | None = None) -> Tensor:
        """Form the gradients, ``[B, R, C]``, optionally in given memory."""
        return torch.bmm(self.rows.transpose(1, 2), self.columns, out=out)

    def add_to(self, dense: Tensor) -> None:
        """Add the gradients to a dense ``[B, R, C]``."""
        dense.baddbmm_(self.rows.transpose(1, 2), self.columns)

    def along(self, vector: Tensor) -> Tensor:
        """Compute ``<grad[b], vector>``, ``[B]``; the vector has the parameter's elements."""
        matrix = vector.reshape(self.rows.shape[2], self.columns.shape[2])
        return (torch.matmul(self.columns, matrix.T) * self.rows).sum((1, 2))

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Compute ``sum_b weights[b] * grad[b]``, ``[R, C]``, without forming the gradients."""
        columns = self.columns * weights_B[:, None, None]
        return self.rows.flatten(0, 1).T @ columns.flatten(0, 1)


@dataclass(frozen=True)
class Lookup:
    """Part from an embedding table: ``grad[b, ids[b, t]] += columns[b, t]``.

    Args:
        ids: ``[B, T]`` int64, the rows that were read.
        columns: ``[B, T, C]``, the gradient of what was read.
        num_rows: R, of the table.
    """

    ids: Tensor
    columns: Tensor
    num_rows: int

    def dense(self, out: Tensor | None = None) -> Tensor:
        """Form the gradients, ``[B, R, C]``, optionally in given memory."""
        B, _, C = self.columns.shape
        dense = self.columns.new_zeros(B, self.num_rows, C) if out is None else out.zero_()
        self.add_to(dense)
        return dense

    def add_to(self, dense: Tensor) -> None:
        """Add the gradients to a dense ``[B, R, C]``."""
        B, R, C = dense.shape
        first_rows = torch.arange(0, B * R, R, device=self.ids.device).unsqueeze(1)
        flat = dense.view(B * R, C)  # whole rows at a time: several times as fast as scattering single numbers
        flat.index_add_(0, (self.ids + first_rows).flatten(), self.columns.reshape(-1, C))

    def along(self, vector: Tensor) -> Tensor:
        """Compute ``<grad[b], vector>``, ``[B]``; the vector has the parameter's elements."""
        matrix = vector.reshape(self.num_rows, self.columns.shape[2])
        return (matrix[self.ids] * self.columns).sum((1, 2))

    def scaled(self, scale: Tensor) -> Lookup:
        """Multiply the gradients by factors of the table's shape, element by element."""
        return replace(self, columns=self.columns * scale.view(self.num_rows, -1)[self.ids])

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Compute ``sum_b weights[b] * grad[b]``, ``[R, C]``, without forming the gradients."""
        columns = self.columns * weights_B[:, None, None]
        total = columns.new_zeros(self.num_rows, columns.shape[-1])
        return total.index_add_(0, self.ids.flatten(), columns.flatten(0, 1))


@dataclass(frozen=True)
class Positions:
    """Part from a bias or a norm, before positions are added up: ``grad[b] = sum_t value[b, t]``.

    Args:
        value: ``[B, T, C]``, for a parameter of one axis.
    """

    value: Tensor

    def summed(self) -> Dense:
        """Add the positions up."""
        return Dense(self.value.sum(1, dtype=accumulation_dtype(self.value)))


@dataclass(frozen=True)
class Dense:
    """Part that is dense: of biases and norms, which are too small to factor, and of whatever has no factors.

    Args:
        value: ``[B, *parameter.shape]``.
    """

    value: Tensor

    def dense(self, out: Tensor | None = None) -> Tensor:
        """Get the gradients, ``[B, *parameter.shape]``."""
        return self.value

    def add_to(self, dense: Tensor) -> None:
        """Add the gradients to a dense tensor of as many elements."""
        dense += self.value.view(dense.shape)

    def along(self, vector: Tensor) -> Tensor:
        """Compute ``<grad[b], vector>``, ``[B]``; the vector has the parameter's elements."""
        return flat_rows(self.value) @ vector.flatten()

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Compute ``sum_b weights[b] * grad[b]``, in the parameter's shape."""
        return torch.tensordot(weights_B, self.value, dims=1)


Factored = Outer | Lookup
Part = Outer | Lookup | Dense


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Get the dtype in which a tensor is summed: float64 stays, all others become float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def flat_rows(values: Tensor) -> Tensor:
    """Flatten ``[B, *shape]`` to ``[B, P]``, also where the parameter has no axes."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def num_positions(part: Factored) -> int:
    """Get T, the number of positions that a factored part sums over."""
    return part.columns.shape[1]


def like(part: Part | Positions) -> Tensor:
    """Get a tensor of the part's dtype and device."""
    return part.columns if isinstance(part, Outer | Lookup) else part.value


def take(part: Part, start: int, stop: int, dtype: torch.dtype) -> Part:
    """Take the examples ``start <= b < stop`` of a part, in the dtype that sums are taken in."""
    if isinstance(part, Outer):
        return Outer(part.rows[start:stop].to(dtype), part.columns[start:stop].to(dtype))
    if isinstance(part, Lookup):
        return replace(part, ids=part.ids[start:stop], columns=part.columns[start:stop].to(dtype))
    return Dense(part.value[start:stop].to(dtype))


def take_rows(part: Part, start: int, stop: int) -> Part:
    """Take the parameter's rows ``start <= r < stop`` of a part."""
    if isinstance(part, Outer):
        return Outer(part.rows[..., start:stop], part.columns)
    if isinstance(part, Lookup):
        inside = (part.ids >= start) & (part.ids < stop)
        return Lookup((part.ids - start) * inside, part.columns * inside.unsqueeze(-1), stop - start)
    return Dense(part.value[:, start:stop])


def merge(parts: list[Part | Positions]) -> tuple[Part, ...]:
    """Merge parts to one of each kind, with the same sum: a shared weight's uses become one list of positions."""
    outers = [part for part in parts if isinstance(part, Outer)]
    lookups = [part for part in parts if isinstance(part, Lookup)]
    dense = [
        part.summed() if isinstance(part, Positions) else part for part in parts if isinstance(part, Dense | Positions)
    ]
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
    """Stack the examples of several batches, whose parts are of one kind, into one part.

    Args:
        parts: Each batch's part; None stands for zeros. Shorter ones are padded with empty positions.
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
    positions = max(num_positions(part) for part in factored)

    def stacked(tensors: Sequence[Tensor | None]) -> Tensor:
        present = [tensor for tensor in tensors if tensor is not None]
        dtype = reduce(torch.promote_types, [tensor.dtype for tensor in present])
        total = present[0].new_zeros(sum(counts), positions, *present[0].shape[2:], dtype=dtype)
        for tensor, stop in zip(tensors, accumulate(counts), strict=True):
            if tensor is not None:
                total[stop - len(tensor) : stop, : tensor.shape[1]] = tensor
        return total

    columns = stacked([None if part is None or isinstance(part, Dense) else part.columns for part in parts])
    if isinstance(given, Outer):
        return Outer(stacked([part.rows if isinstance(part, Outer) else None for part in parts]), columns)
    return Lookup(stacked([part.ids if isinstance(part, Lookup) else None for part in parts]), columns, given.num_rows)

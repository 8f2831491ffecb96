"""Gradients of a batch, one per example, over all covered parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ftrace.gradients.costs import NormWay, Shape, cheapest_norm_way, measured_rates, shape_of_parts
from ftrace.gradients.parts import (
    Dense,
    Factored,
    Lookup,
    Outer,
    Part,
    Positions,
    accumulation_dtype,
    flat_rows,
    like,
    merge,
    num_positions,
    stack_examples,
    take,
    take_rows,
)

CHUNK_BYTES = 256 * 2**20
_FORMED_BYTES = 4 * 2**20  # of gradients that are formed at a time, and of each vector that they are multiplied with


class PerExampleGradients:
    """Gradients of ``B`` examples, stored as factors and made dense only where that is cheaper.

    Sums are taken in float32, or float64 where the pass was in float64, whatever the precision of the factors.

    Args:
        parts: For each parameter's name, the parts that add up to its gradient (one per use of the parameter).
        shapes: The shape of each of these parameters.
        num_examples: B.
        scales: For some parameters, factors of their gradient, element by element, in their shape.
    """

    def __init__(
        self,
        parts: Mapping[str, list[Part | Positions]],
        shapes: Mapping[str, torch.Size],
        num_examples: int,
        scales: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.parts: dict[str, tuple[Part, ...]] = {name: merge(of_name) for name, of_name in parts.items()}
        self.shapes = dict(shapes)
        self.num_examples = num_examples
        self.scales = dict(scales or {})
        dtypes = {accumulation_dtype(like(part)) for of_name in self.parts.values() for part in of_name}
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32

    def __len__(self) -> int:
        return self.num_examples

    @property
    def device(self) -> torch.device:
        """The device that the gradients are on."""
        return next((like(parts[0]).device for parts in self.parts.values()), torch.device("cpu"))

    def zeros(self, *size: int) -> Tensor:
        """Make zeros of the dtype that sums are taken in, on the gradients' device."""
        return torch.zeros(size, dtype=self.dtype, device=self.device)

    def only(self, names: Collection[str]) -> PerExampleGradients:
        """Select the gradients of some parameters."""
        parts = {name: list(of_name) for name, of_name in self.parts.items() if name in names}
        scales = {name: scale for name, scale in self.scales.items() if name in names}
        return PerExampleGradients(parts, self.shapes, len(self), scales)  # type: ignore[arg-type]

    def with_sums_in(self, dtype: torch.dtype) -> PerExampleGradients:
        """Return the same gradients with sums in a dtype, as if some parameter had needed it."""
        same = self.only(self.parts)
        same.dtype = dtype
        return same

    def with_those_of(self, other: PerExampleGradients, names: Collection[str]) -> PerExampleGradients:
        """Replace the gradients of some parameters by another object's.

        Args:
            other: Of the same examples.
            names: The parameters.
        """
        kept, taken = self.only(set(self.parts) - set(names)), other.only(names)
        parts: dict[str, list[Part | Positions]] = {
            name: list(of_name) for gradients in (kept, taken) for name, of_name in gradients.parts.items()
        }
        return PerExampleGradients(parts, {**kept.shapes, **taken.shapes}, len(self), {**kept.scales, **taken.scales})

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Get (R, C), the numbers of rows and columns of a parameter's factors."""
        shape = self.shapes[name]
        return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))

    def dense(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        out: Tensor | None = None,
        rows: tuple[int, int] | None = None,
        only: Sequence[Part] | None = None,
        *,
        scaled: bool = True,
    ) -> Tensor:
        """Form the gradients of one parameter, ``[B, *shape]``; of some of its rows, ``[B, rows, C]``.

        Args:
            name: The parameter.
            start: First example.
            stop: One past the last example; default: all.
            out: Memory that may be used for the result, of at least as many elements.
            rows: First row, and one past the last; default: all.
            only: Just these of the parameter's parts.
            scaled: Whether to multiply them by the parameter's scale, if it has one.
        """
        stop = self.num_examples if stop is None else stop
        R, C = self.matrix_shape(name)
        first_row, last_row = rows or (0, R)
        shape = (stop - start, last_row - first_row, C)
        if out is not None:
            out = out[: math.prod(shape)].view(shape)
        parts = [take(part, start, stop, self.dtype) for part in only or self.parts[name]]
        if rows is not None:
            parts = [take_rows(_as_matrix(part, R, C), first_row, last_row) for part in parts]
        dense = parts[0].dense(out)
        for part in parts[1:]:  # `merge` puts a Dense part last, so its tensor is never added to
            part.add_to(dense)
        dense = dense.reshape(shape)
        if scaled and name in self.scales:
            scale = self.scales[name].view(R, C)[first_row:last_row]
            # A Dense part's tensor is the gradient itself; all others were formed here.
            dense = dense * scale if isinstance(parts[0], Dense) else dense.mul_(scale)
        return dense if rows is not None else dense.view(stop - start, *self.shapes[name])

    def along(self, name: str, vector: Tensor) -> Tensor:
        """Compute ``<grad_b, vector>`` of one parameter, ``[B]``, without forming the gradients.

        Args:
            name: The parameter.
            vector: In its shape.
        """
        if name in self.scales:
            vector = vector * self.scales[name]
        products = self.zeros(self.num_examples)
        for part in self.parts[name]:
            products += take(part, 0, self.num_examples, self.dtype).along(vector.to(self.dtype))
        return products

    def along_each(self, name: str, vectors: Sequence[Tensor]) -> Tensor:
        """Compute :meth:`along` for several vectors, ``[V, B]``.

        A matrix's gradients are formed, a few examples and rows at a time: that takes one product of the factors,
        whereas each vector by itself takes another one.
        """
        kinds = {type(part) for part in self.parts[name]}
        if len(vectors) == 1 or (Lookup in kinds and Outer not in kinds):
            return torch.stack([self.along(name, vector) for vector in vectors])
        R, C = self.matrix_shape(name)
        elements = _FORMED_BYTES // self.zeros().element_size()
        num_rows = max(1, min(R, elements // max(1, C)))
        num_examples = max(1, elements // max(1, num_rows * C))
        products = self.zeros(len(vectors), self.num_examples)
        for first in range(0, R, num_rows):
            rows = first, min(first + num_rows, R)
            matrix = torch.stack([vector.reshape(R, C)[slice(*rows)].flatten().to(self.dtype) for vector in vectors])
            for start in range(0, self.num_examples, num_examples):
                stop = min(start + num_examples, self.num_examples)
                products[:, start:stop] += matrix @ flat_rows(self.dense(name, start, stop, rows=rows)).T
        return products

    def weighted_sum(self, name: str, weights_B: Tensor) -> Tensor:
        """Compute ``sum_b weights[b] * grad[b]`` of one parameter, in its shape."""
        total = torch.zeros((), dtype=weights_B.dtype, device=weights_B.device).expand(self.shapes[name])
        for part in self.parts[name]:
            converted = take(part, 0, self.num_examples, self.dtype)
            total = total + converted.weighted_sum(weights_B).reshape(self.shapes[name])
        return total * self.scales[name] if name in self.scales else total

    def total(self, name: str) -> Tensor:
        """Add up the examples' gradients of one parameter, in its shape: the gradient of the batch."""
        parts = self.parts[name]
        if len(parts) == 1 and isinstance(parts[0], Dense) and name not in self.scales:
            return parts[0].value.sum(0, dtype=self.dtype).view(self.shapes[name])
        return self.weighted_sum(name, self.zeros(self.num_examples) + 1)

    def chunks(self, elements_per_example: int, chunk_bytes: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield ranges of examples such that a temporary tensor with so many elements per example fits in memory."""
        bytes_each = max(1, elements_per_example * self.zeros().element_size())
        size = max(1, (chunk_bytes or CHUNK_BYTES) // bytes_each)
        for start in range(0, self.num_examples, size):
            yield start, min(start + size, self.num_examples)

    def square_norms(self, names: Iterable[str] | None = None) -> Tensor:
        """Compute ``|grad_b|^2`` over the named parameters (default: all), ``[B]``, each in the cheapest way."""
        norms = self.zeros(self.num_examples)
        for name in self.parts if names is None else names:
            if name in self.parts:
                norms += self.square_norms_of(name, self._norm_way(name))
        return norms

    def square_norms_of(self, name: str, way: NormWay) -> Tensor:
        """Compute ``|grad_b|^2`` of one parameter, ``[B]``.

        Args:
            name: The parameter.
            way: ``gram``, from the factors alone, or ``materialised``, from dense gradients.
        """
        norms = self.zeros(self.num_examples)
        if way == "gram":
            positions = max(part.columns.shape[1] for part in self.parts[name] if not isinstance(part, Dense))
            for start, stop in self.chunks(2 * positions * positions):
                norms[start:stop] = self._gram_norms(name, start, stop)
        else:
            for start, stop in self.chunks(self.shapes[name].numel()):
                norms[start:stop] = row_square_norms(flat_rows(self.dense(name, start, stop)))
        return norms

    def _norm_way(self, name: str) -> NormWay:
        R, C = self.matrix_shape(name)
        number = self.zeros()
        shape = Shape(self.num_examples, 0, R, C, shape_of_parts(self.parts[name]), ())
        rates = measured_rates(number.device, number.dtype)
        return cheapest_norm_way(shape, rates, scaled=name in self.scales)

    def _gram_norms(self, name: str, start: int, stop: int) -> Tensor:
        parts = [take(part, start, stop, self.dtype) for part in self.parts[name]]
        pairs = [(a, b) for a in parts for b in parts if not isinstance(a, Dense) and not isinstance(b, Dense)]
        return torch.stack([paired_products(first, second) for first, second in pairs]).sum(0)

    @staticmethod
    def sum(several: Sequence[PerExampleGradients]) -> PerExampleGradients:
        """Add up the gradients of several backward passes (at least one) over the same examples."""
        parts: dict[str, list[Part | Positions]] = {}
        for gradients in several:
            for name, of_name in gradients.parts.items():
                parts.setdefault(name, []).extend(of_name)
        shapes = {name: shape for gradients in several for name, shape in gradients.shapes.items()}
        return PerExampleGradients(parts, shapes, len(several[0]))

    @staticmethod
    def stack(batches: Sequence[PerExampleGradients]) -> PerExampleGradients:
        """Concatenate the examples of several batches; parameters without a gradient in a batch are zero there.

        Raises:
            ValueError: If the batches have different elementwise scales.
        """
        if len(batches) == 1:
            return batches[0]
        counts = [len(batch) for batch in batches]
        names = dict.fromkeys(name for batch in batches for name in batch.parts)
        parts: dict[str, list[Part | Positions]] = {}
        for name in names:
            by_kind = [{type(part): part for part in batch.parts.get(name, ())} for batch in batches]
            kinds = dict.fromkeys(kind for of_batch in by_kind for kind in of_batch)
            parts[name] = [stack_examples([of_batch.get(kind) for of_batch in by_kind], counts) for kind in kinds]
        shapes = {name: shape for batch in batches for name, shape in batch.shapes.items()}
        scales = {name: scale for batch in batches for name, scale in batch.scales.items()}
        for batch in batches:
            if any(name in batch.parts and batch.scales.get(name) is not scale for name, scale in scales.items()):
                raise ValueError("stack: expected batches with the same preconditioner. Stack first, then precondition")
        return PerExampleGradients(parts, shapes, sum(counts), scales)


def row_square_norms(rows_BP: Tensor) -> Tensor:
    """Compute ``|row|^2``, ``[B]``."""
    return torch.linalg.vector_norm(rows_BP, dim=1) ** 2


def paired_products(first: Factored, second: Factored) -> Tensor:
    """Compute ``<grad_b, grad'_b>`` of two parts of the same examples' gradients, ``[B]``, from the factors alone."""
    pairs_BTS = first.columns @ second.columns.transpose(1, 2)
    if isinstance(first, Outer) and isinstance(second, Outer):
        pairs_BTS *= first.rows @ second.rows.transpose(1, 2)
    elif isinstance(first, Lookup) and isinstance(second, Lookup):
        pairs_BTS *= first.ids[:, :, None] == second.ids[:, None, :]
    elif isinstance(first, Lookup) and isinstance(second, Outer):
        index = first.ids[:, None, :].expand(-1, num_positions(second), -1)
        pairs_BTS *= second.rows.gather(2, index).transpose(1, 2)
    else:
        return paired_products(second, first)
    return pairs_BTS.sum((1, 2))


def _as_matrix(part: Part, rows: int, columns: int) -> Part:
    return Dense(part.value.reshape(len(part.value), rows, columns)) if isinstance(part, Dense) else part

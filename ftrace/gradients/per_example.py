"""The gradients of a batch, one per example, over all covered parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ftrace.gradients.parts import Dense, Part, merge, stack_examples, take

CHUNK_BYTES = 256 * 2**20


class PerExampleGradients:
    """Gradients of ``B`` examples, held as factors and made dense only where that is cheaper.

    Args:
        parts: For each parameter's name, the parts that its gradient is the sum of (one per use of the parameter).
        shapes: The shape of each of these parameters.
        num_examples: B.
    """

    def __init__(self, parts: Mapping[str, list[Part]], shapes: Mapping[str, torch.Size], num_examples: int) -> None:
        self.parts = {name: merge(of_name) for name, of_name in parts.items()}
        self.shapes = dict(shapes)
        self.num_examples = num_examples

    def __len__(self) -> int:
        return self.num_examples

    def zeros(self, *size: int) -> Tensor:
        """Zeros of the gradients' own dtype and device."""
        for parts in self.parts.values():
            like = parts[0].value if isinstance(parts[0], Dense) else parts[0].columns
            return like.new_zeros(size)
        return torch.zeros(size)

    def dense(self, name: str, start: int = 0, stop: int | None = None, out: Tensor | None = None) -> Tensor:
        """Gradients of one parameter, ``[B, *shape]``.

        Args:
            name: The parameter.
            start: First example.
            stop: One past the last example; default: all.
            out: Memory of at least that many elements that may be used for the result.
        """
        stop = self.num_examples if stop is None else stop
        shape = (stop - start, *self.shapes[name])
        if out is not None:
            out = out[: math.prod(shape)].view(shape)
        first, *rest = [take(part, start, stop) for part in self.parts[name]]
        dense = first.dense(out)
        for part in rest:  # `merge` puts a Dense part last, so what is added to is never somebody's own tensor
            part.add_to(dense)
        return dense.reshape(shape)

    def weighted_sum(self, name: str, weights_B: Tensor) -> Tensor:
        """``sum_b weights[b] * grad[b]`` of one parameter, in its shape."""
        pieces = [part.weighted_sum(weights_B).reshape(self.shapes[name]) for part in self.parts[name]]
        return sum(pieces[1:], start=pieces[0])

    def total(self, name: str) -> Tensor:
        """The sum over examples of one parameter's gradient, in its shape: the gradient of the batch."""
        return self.weighted_sum(name, self.zeros(self.num_examples) + 1)

    def chunks(self, elements_per_example: int) -> Iterator[tuple[int, int]]:
        """Ranges of examples that keep a temporary of that many elements an example within ``CHUNK_BYTES``."""
        bytes_each = max(1, elements_per_example * self.zeros().element_size())
        size = max(1, CHUNK_BYTES // bytes_each)
        for start in range(0, self.num_examples, size):
            yield start, min(start + size, self.num_examples)

    def square_norms(self, names: Iterable[str] | None = None) -> Tensor:
        """``|grad_b|^2`` over the named parameters (default: all), ``[B]``."""
        norms = self.zeros(self.num_examples)
        for name in self.parts if names is None else names:
            if name in self.parts:
                for start, stop in self.chunks(self.shapes[name].numel()):
                    norms[start:stop] += torch.linalg.vector_norm(self.dense(name, start, stop).flatten(1), dim=1) ** 2
        return norms

    @staticmethod
    def stack(batches: Sequence[PerExampleGradients]) -> PerExampleGradients:
        """The examples of several batches, in order, as one; what a batch has no gradient for is zero there."""
        if len(batches) == 1:
            return batches[0]
        counts = [len(batch) for batch in batches]
        names = dict.fromkeys(name for batch in batches for name in batch.parts)
        parts: dict[str, list[Part]] = {}
        for name in names:
            by_kind = [{type(part): part for part in batch.parts.get(name, ())} for batch in batches]
            kinds = dict.fromkeys(kind for of_batch in by_kind for kind in of_batch)
            parts[name] = [stack_examples([of_batch.get(kind) for of_batch in by_kind], counts) for kind in kinds]
        shapes = {name: shape for batch in batches for name, shape in batch.shapes.items()}
        return PerExampleGradients(parts, shapes, sum(counts))

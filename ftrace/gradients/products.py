"""Inner products of per-example gradients with query gradients: exact, each parameter by the cheaper of two ways.

Shape letters: B examples, T places in an example, Q queries, S places in a query, P elements of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ftrace.gradients.parts import Dense, Lookup, Outer, gram, num_places, own_gram, take
from ftrace.gradients.per_example import CHUNK_BYTES, PerExampleGradients

# An operation of the gram product is bound by memory, one of the dense product is not (measured on two cores).
GRAM_PENALTY = 4


class QueryGradients:
    """The query side of inner products: prepared once, multiplied with many batches of examples.

    Args:
        gradients: Gradients of the Q queries.
    """

    def __init__(self, gradients: PerExampleGradients) -> None:
        self.gradients = gradients
        self._dense_QP: dict[str, Tensor] = {}
        self._memory: Tensor | None = None

    def __len__(self) -> int:
        return len(self.gradients)

    def dense(self, name: str) -> Tensor:
        """Gradients of one parameter, ``[Q, P]``, kept for the next call."""
        if name not in self._dense_QP:
            self._dense_QP[name] = self.gradients.dense(name).flatten(1)
        return self._dense_QP[name]

    def memory(self, elements: int, like: Tensor) -> Tensor:
        """Memory for the dense gradients of examples, used again and again: fresh pages cost more than arithmetic."""
        if self._memory is None or len(self._memory) < elements:
            self._memory = like.new_empty(elements)
        return self._memory

    def weighted_sum(self, name: str, weights_Q: Tensor) -> Tensor:
        """``sum_q weights[q] * grad[q]`` of one parameter, in its shape."""
        if name in self._dense_QP:
            return (weights_Q @ self._dense_QP[name]).reshape(self.gradients.shapes[name])
        return self.gradients.weighted_sum(name, weights_Q)

    def norms(self, names: Iterable[str]) -> Tensor:
        """``|grad_q|`` over the named parameters, ``[Q]``."""
        return self.gradients.square_norms(names).sqrt()


def inner_products(examples: PerExampleGradients, queries: QueryGradients, names: Iterable[str]) -> Tensor:
    """``<grad_b, grad_q>`` over the named parameters, for every pair.

    Args:
        examples: Gradients of B examples.
        queries: Gradients of Q queries.
        names: Parameters to sum over. One that either side has no gradient for contributes zero.

    Returns:
        ``[B, Q]``, in the dtype of the examples' gradients.
    """
    return _products(examples, queries, names, square_norms=False)[0]


def inner_products_and_square_norms(
    examples: PerExampleGradients, queries: QueryGradients, names: Iterable[str]
) -> tuple[Tensor, Tensor]:
    """``<grad_b, grad_q>``, ``[B, Q]``, and ``|grad_b|^2``, ``[B]``, over the named parameters, in one pass."""
    return _products(examples, queries, names, square_norms=True)


def cosines(inner_BQ: Tensor, norms_B: Tensor, norms_Q: Tensor) -> Tensor:
    """Inner products over the two norms, ``[B, Q]``; 0 where a gradient vanishes."""
    norms_BQ = norms_B[:, None] * norms_Q
    return torch.where(norms_BQ > 0, inner_BQ / norms_BQ, 0)


def _products(
    examples: PerExampleGradients, queries: QueryGradients, names: Iterable[str], *, square_norms: bool
) -> tuple[Tensor, Tensor]:
    inner_BQ = examples.zeros(len(examples), len(queries))
    norms_B = examples.zeros(len(examples))
    names = [name for name in names if name in examples.parts]
    by_gram = {name for name in names if gram_is_cheaper(examples, queries.gradients, name)}
    for name in names:
        if name in by_gram:
            _, elements = _gram_cost(examples, queries.gradients, name)
            for start, stop in examples.chunks(elements):
                inner_BQ[start:stop] += _gram_products(examples, queries.gradients, name, start, stop)
            if square_norms:
                norms_B += _gram_square_norms(examples, name)
            continue
        multiply = name in queries.gradients.parts
        if not multiply and not square_norms:
            continue
        for start, stop in examples.chunks(examples.shapes[name].numel()):
            memory = queries.memory((stop - start) * examples.shapes[name].numel(), like=inner_BQ)
            dense_BP = examples.dense(name, start, stop, out=memory).flatten(1)
            if multiply:
                inner_BQ[start:stop].addmm_(dense_BP, queries.dense(name).T)
            if square_norms:
                norms_B[start:stop] += torch.linalg.vector_norm(dense_BP, dim=1) ** 2
    return inner_BQ, norms_B


def gram_is_cheaper(examples: PerExampleGradients, queries: PerExampleGradients, name: str) -> bool:
    """Whether a parameter's products take fewer operations from the factors than densely.

    Dense query gradients that would not fit ``4 * CHUNK_BYTES`` also call for the factors.
    """
    parts = [*examples.parts[name], *queries.parts.get(name, ())]
    if name not in queries.parts or any(isinstance(part, Dense) for part in parts):
        return False
    elements = examples.shapes[name].numel()
    gram_operations, _ = _gram_cost(examples, queries, name)
    places = sum(num_places(part) for part in examples.parts[name] if not isinstance(part, Dense))
    dense_operations = elements * (places + len(queries))
    too_large = len(queries) * elements * examples.zeros().element_size() > 4 * CHUNK_BYTES
    return too_large or GRAM_PENALTY * gram_operations < dense_operations


def _gram_cost(examples: PerExampleGradients, queries: PerExampleGradients, name: str) -> tuple[int, int]:
    """Operations for each example, and elements of the largest temporary for each example."""
    operations, elements = 0, 0
    for example_part, query_part in _factored_pairs(examples, queries, name):
        pairs = num_places(example_part) * num_places(query_part) * len(queries)
        width = example_part.columns.shape[-1]
        if isinstance(example_part, Outer) and isinstance(query_part, Outer):
            width += example_part.rows.shape[-1]
        operations += pairs * width
        elements = max(elements, 2 * pairs)
    return operations, elements


def _gram_products(
    examples: PerExampleGradients, queries: PerExampleGradients, name: str, start: int, stop: int
) -> Tensor:
    total = examples.zeros(stop - start, len(queries))
    for example_part, query_part in _factored_pairs(examples, queries, name):
        chunk = take(example_part, start, stop)
        assert not isinstance(chunk, Dense)
        total += gram(chunk, query_part)
    return total


def _gram_square_norms(examples: PerExampleGradients, name: str) -> Tensor:
    parts = [part for part in examples.parts[name] if not isinstance(part, Dense)]
    total = examples.zeros(len(examples))
    for first in parts:
        for second in parts:
            total += own_gram(first, second)
    return total


def _factored_pairs(
    examples: PerExampleGradients, queries: PerExampleGradients, name: str
) -> list[tuple[Outer | Lookup, Outer | Lookup]]:
    return [
        (e, q)
        for e in examples.parts[name]
        for q in queries.parts[name]
        if not isinstance(e, Dense) and not isinstance(q, Dense)
    ]

"""Inner products of per-example gradients with query gradients: exact, each parameter in the cheapest way.

Shape letters: B examples, T places in an example, Q queries, S places in a query, R rows, C columns and P elements of a
parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ftrace.gradients.costs import Choice, Way
from ftrace.gradients.factored import contract, gram
from ftrace.gradients.parts import Dense, Factored, Lookup, Outer, flat_rows, num_places, take
from ftrace.gradients.per_example import PerExampleGradients, row_square_norms
from ftrace.gradients.queries import QueryGradients


def inner_products(examples: PerExampleGradients, queries: QueryGradients, names: Iterable[str]) -> Tensor:
    """``<grad_b, grad_q>`` over the named parameters, for every pair.

    Args:
        examples: Gradients of B examples.
        queries: Gradients of Q queries.
        names: Parameters to sum over. One that either side has no gradient for contributes zero.

    Returns:
        ``[B, Q]``, in float32, or float64 where the passes were.

    Raises:
        ValueError: If one side is in float64 and the other is not.
    """
    return _products(examples, queries, names, norms=False)[0]


def inner_products_and_square_norms(
    examples: PerExampleGradients, queries: QueryGradients, names: Iterable[str]
) -> tuple[Tensor, Tensor]:
    """``<grad_b, grad_q>``, ``[B, Q]``, and ``|grad_b|^2``, ``[B]``, over the named parameters, in one pass."""
    return _products(examples, queries, names, norms=True)


def cosines(inner_BQ: Tensor, norms_B: Tensor, norms_Q: Tensor) -> Tensor:
    """Inner products over the two norms, ``[B, Q]``; 0 where a gradient vanishes."""
    norms_BQ = norms_B[:, None] * norms_Q
    return torch.where(norms_BQ > 0, inner_BQ / norms_BQ, 0)


# Dense gradients are formed in blocks that a processor's cache still holds when they are multiplied.
CACHE_BYTES = 32 * 2**20


def _products(
    examples: PerExampleGradients, queries: QueryGradients, names: Iterable[str], *, norms: bool
) -> tuple[Tensor, Tensor]:
    if examples.parts and queries.gradients.parts and examples.dtype != queries.gradients.dtype:
        raise ValueError(
            f"expected examples and queries of one precision, found {examples.dtype} and {queries.gradients.dtype}"
        )
    inner_BQ = examples.zeros(len(examples), len(queries))
    norms_B = examples.zeros(len(examples))
    names = [name for name in dict.fromkeys(names) if name in examples.parts]
    joinable = [name for name in names if queries.is_joinable(examples, name)]
    _add_joined(examples, queries, joinable, inner_BQ, norms_B if norms else None)
    for name in names:
        if name in joinable:
            continue
        if name not in queries.gradients.parts:
            if norms:
                norms_B += examples.square_norms([name])
            continue
        choice = queries.choose(examples, name, norms=norms)
        if "materialised" in choice.ways:
            shared = norms_B if norms and choice.shares_dense else None
            _add_materialised(examples, queries, name, choice, inner_BQ, shared)
        if set(choice.ways) != {"materialised"}:
            _add_factored(examples, queries, name, choice, inner_BQ)
        if norms and not choice.shares_dense:
            norms_B += examples.square_norms([name])
    return inner_BQ, norms_B


def _add_joined(
    examples: PerExampleGradients,
    queries: QueryGradients,
    names: Sequence[str],
    inner_BQ: Tensor,
    norms_B: Tensor | None,
) -> None:
    """Parameters whose gradients are dense on both sides anyway: one product for all of them."""
    if not names:
        return
    joined_QP = queries.joined(names)
    for start, stop in examples.chunks(joined_QP.shape[1], queries.chunk_bytes):
        dense_BP = torch.cat([flat_rows(examples.dense(name, start, stop)) for name in names], 1)
        inner_BQ[start:stop] += tall_product(dense_BP, joined_QP)
        if norms_B is not None:
            norms_B[start:stop] += row_square_norms(dense_BP)


def _add_materialised(
    examples: PerExampleGradients,
    queries: QueryGradients,
    name: str,
    choice: Choice,
    inner_BQ: Tensor,
    norms_B: Tensor | None,
) -> None:
    """Both sides dense, in blocks of examples and, where a single gradient is too large, of the parameter's rows."""
    R, C = examples.matrix_shape(name)
    parts = [part for part, way in zip(examples.parts[name], choice.ways, strict=True) if way == "materialised"]
    kept_QP = queries.keep_dense(name, choice) if choice.keeps_dense else None
    together = len(examples) if kept_QP is not None else max(len(examples), len(queries))
    block_bytes = min(queries.chunk_bytes, CACHE_BYTES)
    block_rows = min(R, max(1, block_bytes // max(1, together * C * inner_BQ.element_size())))
    for first in range(0, R, block_rows):
        rows = None if block_rows >= R else (first, min(first + block_rows, R))
        of_rows = slice(None) if rows is None else slice(rows[0] * C, rows[1] * C)
        queries_QP = kept_QP[:, of_rows] if kept_QP is not None else flat_rows(queries.gradients.dense(name, rows=rows))
        for start, stop in examples.chunks(queries_QP.shape[1], queries.chunk_bytes):
            memory = queries.memory((stop - start) * queries_QP.shape[1], like=inner_BQ)
            dense_BP = flat_rows(examples.dense(name, start, stop, out=memory, rows=rows, only=parts))
            inner_BQ[start:stop] += tall_product(dense_BP, queries_QP)
            if norms_B is not None:
                norms_B[start:stop] += row_square_norms(dense_BP)


def _add_factored(
    examples: PerExampleGradients, queries: QueryGradients, name: str, choice: Choice, inner_BQ: Tensor
) -> None:
    """The parts that are multiplied as factors."""
    for part, way in zip(examples.parts[name], choice.ways, strict=True):
        if way != "materialised":
            assert not isinstance(part, Dense)
            for of_examples, _, of_queries, products_BTQ in by_place(part, queries, name, choice, way):
                inner_BQ[of_examples, of_queries] += products_BTQ.sum(1)


def by_place(
    part: Factored, queries: QueryGradients, name: str, choice: Choice, way: Way
) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Products of each place of each example with each query, in blocks that keep to the memory budget.

    Yields:
        Which examples, places and queries a block is of, and their products ``[examples, places, queries]``.
    """
    B, T = part.columns.shape[:2]
    R, C = queries.gradients.matrix_shape(name)
    dtype = queries.gradients.dtype
    limit = max(1, queries.chunk_bytes // queries.rates.element)
    kept_QP = queries.keep_dense(name, choice) if choice.keeps_dense else None
    factored = [part for part in queries.gradients.parts[name] if not isinstance(part, Dense)]
    if way == "gram":
        each = max(1, 2 * max(num_places(other) for other in factored))
    else:
        each = max(1, 2 * (C if isinstance(part, Lookup) else min(R, C)))
    places = max(1, min(T, limit // each))
    per_query = places * each if kept_QP is not None or way == "gram" else max(places * each, R * C)
    query_step = max(1, min(len(queries), limit // per_query))
    example_step = max(1, limit // (places * each * query_step))
    for of_queries in _slices(len(queries), query_step):
        if way == "gram":
            others = [take(other, of_queries.start, of_queries.stop, dtype) for other in factored]
        elif kept_QP is not None:
            dense_QRC = kept_QP[of_queries].view(-1, R, C)
        else:
            dense_QRC = queries.gradients.dense(name, of_queries.start, of_queries.stop).view(-1, R, C)
        for of_examples in _slices(B, example_step):
            for of_places in _slices(T, places):
                block = take(_take_places(part, of_places), of_examples.start, of_examples.stop, dtype)
                assert not isinstance(block, Dense)
                if way == "contraction":
                    products_BTQ = contract(block, dense_QRC)
                else:
                    pairs = [gram(block, other) for other in others if not isinstance(other, Dense)]
                    products_BTQ = torch.stack(pairs).sum(0) if len(pairs) > 1 else pairs[0]
                yield of_examples, of_places, of_queries, products_BTQ


def _take_places(part: Factored, places: slice) -> Factored:
    if isinstance(part, Outer):
        return Outer(part.rows[:, places], part.columns[:, places])
    return Lookup(part.ids[:, places], part.columns[:, places], part.num_rows)


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def tall_product(rows_BP: Tensor, rows_QP: Tensor) -> Tensor:
    """``rows_BP @ rows_QP.T`` for P much larger than B and Q, ``[B, Q]``.

    Few and very long rows are multiplied in blocks: one matrix product would not use all cores (measured: 4 times
    faster for 8 x 8).
    """
    B, P = rows_BP.shape
    blocks = 64
    if max(B, len(rows_QP)) > 16 or P % blocks or P < 2**16:
        return (rows_QP @ rows_BP.T).T  # a twentieth faster than the other way round
    first = rows_BP.view(B, blocks, -1).transpose(0, 1)
    second = rows_QP.reshape(len(rows_QP), blocks, -1).permute(1, 2, 0)
    return torch.bmm(first, second).sum(0)

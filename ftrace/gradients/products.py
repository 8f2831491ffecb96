"""Inner products of per-example gradients with query gradients: exact, each parameter in the way that its plan says.

The four ways are here: dense gradients that are joined, materialised gradients, gram products of the factors of both,
and contraction of the examples' factors with the queries' dense gradients. Which one is taken is decided in
``product_plans.py``; nothing here chooses.

Shape letters: B examples, T positions in an example, Q queries, S positions in a query, R rows, C columns and P
elements of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ftrace.gradients.costs import Way
from ftrace.gradients.parts import Dense, Factored, Lookup, Outer, flat_rows, num_positions, take
from ftrace.gradients.per_example import PerExampleGradients, row_square_norms
from ftrace.gradients.product_plans import PlanLine
from ftrace.gradients.queries import QueryGradients
from ftrace.gradients.row_products import products_of_rows

# Dense gradients are formed in blocks that a processor's cache still holds when they are multiplied.
CACHE_BYTES = 32 * 2**20


def inner_products(examples: PerExampleGradients, queries: QueryGradients, names: Iterable[str]) -> Tensor:
    """Compute ``<grad_b, grad_q>`` over the named parameters, for every pair.

    Args:
        examples: Gradients of B examples.
        queries: Gradients of Q queries.
        names: Parameters to sum over. One that the examples or the queries have no gradient of contributes zero.

    Returns:
        ``[B, Q]``, in float32, or float64 where the queries' passes were.

    Raises:
        ValueError: If only the examples are in float64.
    """
    return _products(examples, queries, names, norms=False)[0]


def inner_products_and_square_norms(
    examples: PerExampleGradients, queries: QueryGradients, names: Iterable[str]
) -> tuple[Tensor, Tensor]:
    """Compute ``<grad_b, grad_q>``, ``[B, Q]``, and ``|grad_b|^2``, ``[B]``, over the named parameters, in one pass."""
    return _products(examples, queries, names, norms=True)


def cosines(inner_BQ: Tensor, norms_B: Tensor, norms_Q: Tensor) -> Tensor:
    """Divide inner products by the two norms, ``[B, Q]``; 0 where a gradient vanishes."""
    norms_BQ = norms_B[:, None] * norms_Q
    return torch.where(norms_BQ > 0, inner_BQ / norms_BQ, 0)


def _in_precision_of(
    queries: PerExampleGradients, examples: PerExampleGradients, names: Sequence[str]
) -> PerExampleGradients:
    """Take examples' gradients of some parameters in the queries' dtype, which others may have made float64.

    Raises:
        ValueError: If these examples are in float64, and the queries aren't.
    """
    examples = examples.only(names)
    if examples.parts and examples.dtype == torch.float64:
        raise ValueError(f"expected examples and queries of one precision, found {examples.dtype} and {queries.dtype}")
    return examples.with_sums_in(queries.dtype)


def _products(
    examples: PerExampleGradients, queries: QueryGradients, names: Iterable[str], *, norms: bool
) -> tuple[Tensor, Tensor]:
    """Plan the products, then follow the plan: what is joined first, then line by line."""
    names = list(names)
    if examples.parts and queries.gradients.parts and examples.dtype != queries.gradients.dtype:
        examples = _in_precision_of(queries.gradients, examples, names)
    plan = queries.plan(examples, names, norms=norms)
    inner_BQ = examples.zeros(len(examples), len(queries))
    norms_B = examples.zeros(len(examples))
    _add_joined(examples, queries, plan.joined, inner_BQ, norms_B if norms else None)
    for line in plan.lines:
        if line.is_joined:
            continue
        if "materialised" in line.ways:
            _add_materialised(examples, queries, line, inner_BQ, norms_B if line.norms == "shared" else None)
        scale = examples.scales.get(line.parameter)
        for part, way in zip(examples.parts[line.parameter], line.ways, strict=False):
            if way in ("gram", "contraction"):
                assert not isinstance(part, Dense)
                for of_examples, _, of_queries, products_BTQ in products_by_position(part, queries, line, way, scale):
                    inner_BQ[of_examples, of_queries] += products_BTQ.sum(1)
        if line.norms in ("gram", "materialised"):
            norms_B += examples.square_norms_of(line.parameter, line.norms)
    return inner_BQ, norms_B


def _add_joined(
    examples: PerExampleGradients,
    queries: QueryGradients,
    names: list[str],
    inner_BQ: Tensor,
    norms_B: Tensor | None,
) -> None:
    """Add the products of parameters whose gradients are dense anyway, for both: one product for all of them."""
    if not names:
        return
    joined_QP = queries.joined(names)
    for start, stop in examples.chunks(joined_QP.shape[1], queries.chunk_bytes):
        dense_BP = torch.cat([flat_rows(examples.dense(name, start, stop)) for name in names], 1)
        inner_BQ[start:stop] += tall_product(dense_BP, joined_QP)
        if norms_B is not None:
            norms_B[start:stop] += row_square_norms(dense_BP)


def _add_materialised(
    examples: PerExampleGradients, queries: QueryGradients, line: PlanLine, inner_BQ: Tensor, norms_B: Tensor | None
) -> None:
    """Add the products of the parts that are made dense.

    They are formed in blocks of examples and, where a single gradient is too large, of the parameter's rows. The
    examples' elementwise scale goes to whichever side of a block is smaller.
    """
    name = line.parameter
    scale_queries = name in examples.scales and len(queries) < len(examples) and norms_B is None
    R, C = examples.matrix_shape(name)
    parts = [part for part, way in zip(examples.parts[name], line.ways, strict=True) if way == "materialised"]
    kept_QP = queries.kept(line)
    formed_together = len(examples) if kept_QP is not None else max(len(examples), len(queries))
    block_bytes = min(queries.chunk_bytes, CACHE_BYTES)
    block_rows = min(R, max(1, block_bytes // max(1, formed_together * C * inner_BQ.element_size())))
    for first in range(0, R, block_rows):
        rows = None if block_rows >= R else (first, min(first + block_rows, R))
        of_rows = slice(None) if rows is None else slice(rows[0] * C, rows[1] * C)
        queries_QP = kept_QP[:, of_rows] if kept_QP is not None else flat_rows(queries.gradients.dense(name, rows=rows))
        if scale_queries:
            queries_QP = queries_QP * examples.scales[name].flatten()[of_rows]
        for start, stop in examples.chunks(queries_QP.shape[1], queries.chunk_bytes):
            memory = queries.memory((stop - start) * queries_QP.shape[1], like=inner_BQ)
            dense_BP = flat_rows(
                examples.dense(name, start, stop, out=memory, rows=rows, only=parts, scaled=not scale_queries)
            )
            inner_BQ[start:stop] += tall_product(dense_BP, queries_QP)
            if norms_B is not None:
                norms_B[start:stop] += row_square_norms(dense_BP)


def products_by_position(
    part: Factored, queries: QueryGradients, line: PlanLine, way: Way, scale: Tensor | None = None
) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Multiply each position of each example with each query, in blocks that keep to the memory budget.

    Args:
        part: One part of the examples' gradient.
        queries: Gradients of Q queries.
        line: The parameter's plan.
        way: ``gram`` or ``contraction``.
        scale: Factors of the examples' gradient, element by element, if it has them.

    Yields:
        Which examples, positions and queries a block is of, and their products ``[examples, positions, queries]``.
    """
    name = line.parameter
    B, T = part.columns.shape[:2]
    R, C = queries.gradients.matrix_shape(name)
    dtype = queries.gradients.dtype
    if scale is not None and isinstance(part, Lookup):
        part, scale = part.scaled(scale), None
    limit = max(1, queries.chunk_bytes // queries.gradients.dtype.itemsize)
    kept_QP = queries.kept(line)
    query_parts = [part for part in queries.gradients.parts[name] if not isinstance(part, Dense)]
    if way == "gram":
        per_position = max(1, 2 * max(num_positions(query_part) for query_part in query_parts))
    else:
        per_position = max(1, 2 * (C if isinstance(part, Lookup) else min(R, C)))
    positions = max(1, min(T, limit // per_position))
    needs_dense = way == "contraction" and (kept_QP is None or scale is not None)
    per_query = max(positions * per_position, R * C) if needs_dense else positions * per_position
    query_step = max(1, min(len(queries), limit // per_query))
    example_step = max(1, limit // (positions * per_position * query_step))
    for of_queries in _slices(len(queries), query_step):
        if way == "gram":
            factors = [take(query_part, of_queries.start, of_queries.stop, dtype) for query_part in query_parts]
        elif kept_QP is not None:
            dense_QRC = kept_QP[of_queries].view(-1, R, C)
        else:
            dense_QRC = queries.gradients.dense(name, of_queries.start, of_queries.stop).view(-1, R, C)
        if scale is not None:
            dense_QRC = dense_QRC * scale.view(R, C)
        for of_examples in _slices(B, example_step):
            for of_positions in _slices(T, positions):
                block = take(_take_positions(part, of_positions), of_examples.start, of_examples.stop, dtype)
                assert not isinstance(block, Dense)
                if way == "contraction":
                    products_BTQ = contract(block, dense_QRC)
                else:
                    pairs = [gram(block, factor) for factor in factors if not isinstance(factor, Dense)]
                    products_BTQ = torch.stack(pairs).sum(0) if len(pairs) > 1 else pairs[0]
                yield of_examples, of_positions, of_queries, products_BTQ


def _take_positions(part: Factored, positions: slice) -> Factored:
    if isinstance(part, Outer):
        return Outer(part.rows[:, positions], part.columns[:, positions])
    return Lookup(part.ids[:, positions], part.columns[:, positions], part.num_rows)


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def gram(examples: Factored, queries: Factored) -> Tensor:
    """Compute ``<grad_{b,t}, grad_q>`` for each position and query, ``[B, T, Q]``, from the factors alone.

    ``sum_s (rows[b,t] . rows[q,s]) (columns[b,t] . columns[q,s])``, where the row of a lookup is one-hot. The cross
    terms of a tied embedding and head are the case of one Lookup and one Outer. Known as ghost or Gram products
    (Goodfellow 2015, arXiv 1510.01799). Summed over positions, these are the products of the gradients.
    """
    B, T = examples.columns.shape[:2]
    Q, S = queries.columns.shape[:2]
    pairs = products_of_rows(examples.columns.reshape(B * T, -1), queries.columns.reshape(Q * S, -1))
    if isinstance(examples, Lookup) and isinstance(queries, Lookup):
        pairs *= examples.ids.reshape(-1, 1) == queries.ids.reshape(1, -1)
    elif isinstance(examples, Lookup) and isinstance(queries, Outer):
        pairs *= queries.rows.reshape(Q * S, -1)[:, examples.ids.reshape(-1)].T
    elif isinstance(examples, Outer) and isinstance(queries, Lookup):
        pairs *= examples.rows.reshape(B * T, -1)[:, queries.ids.reshape(-1)]
    elif isinstance(examples, Outer) and isinstance(queries, Outer):
        pairs *= products_of_rows(examples.rows.reshape(B * T, -1), queries.rows.reshape(Q * S, -1))
    return pairs.view(B, T, Q, S).sum(3)


def contract(examples: Factored, queries_QRC: Tensor) -> Tensor:
    """Compute ``<grad_{b,t}, grad_q>`` for each position and query, ``[B, T, Q]``, with dense query gradients."""
    B, T = examples.columns.shape[:2]
    columns = examples.columns.flatten(0, 1)
    if isinstance(examples, Lookup):
        along_columns = queries_QRC[:, examples.ids.flatten()]
        return (along_columns * columns).sum(-1).T.reshape(B, T, -1)
    rows = examples.rows.flatten(0, 1)
    if rows.shape[1] >= columns.shape[1]:  # the longer axis first: what is left is smaller
        return ((rows @ queries_QRC) * columns).sum(-1).T.reshape(B, T, -1)
    return ((columns @ queries_QRC.transpose(1, 2)) * rows).sum(-1).T.reshape(B, T, -1)


def tall_product(rows_BP: Tensor, rows_QP: Tensor) -> Tensor:
    """Compute ``rows_BP @ rows_QP.T`` for P much larger than B and Q, ``[B, Q]``.

    Few and very long rows are multiplied in blocks: one matrix product would not use all cores (measured: 4 times
    faster for 8 x 8).
    """
    B, P = rows_BP.shape
    blocks = 64
    if max(B, len(rows_QP)) > 16 or P % blocks or P < 2**16:
        return products_of_rows(rows_QP, rows_BP).T  # a twentieth faster than the other way round
    first = rows_BP.view(B, blocks, -1).transpose(0, 1)
    second = rows_QP.reshape(len(rows_QP), blocks, -1).permute(1, 2, 0)
    return torch.bmm(first, second).sum(0)

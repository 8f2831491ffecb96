"""Products of factored gradients that never form the example's gradient: gram and query-side contraction.

Both give one number for each *place* of an example, so that what a single token contributes can be told; their sum
over places is the product of the gradients.

Shape letters: B examples, T places in an example, Q queries, S places in a query, R rows and C columns.
"""

from __future__ import annotations

from torch import Tensor

from ftrace.gradients.parts import Factored, Lookup, Outer, num_places


def gram(examples: Factored, queries: Factored) -> Tensor:
    """``<grad_{b,t}, grad_q>`` for each place and query, ``[B, T, Q]``, from the factors alone.

    ``sum_s (rows[b,t] . rows[q,s]) (columns[b,t] . columns[q,s])``, where the row of a lookup is one-hot. The cross
    terms of a tied embedding and head are the case of one Lookup and one Outer. Known as ghost or Gram products
    (Goodfellow 2015, arXiv 1510.01799).
    """
    B, T = examples.columns.shape[:2]
    Q, S = queries.columns.shape[:2]
    pairs = examples.columns.reshape(B * T, -1) @ queries.columns.reshape(Q * S, -1).T
    if isinstance(examples, Lookup) and isinstance(queries, Lookup):
        pairs *= examples.ids.reshape(-1, 1) == queries.ids.reshape(1, -1)
    elif isinstance(examples, Lookup) and isinstance(queries, Outer):
        pairs *= queries.rows.reshape(Q * S, -1)[:, examples.ids.reshape(-1)].T
    elif isinstance(examples, Outer) and isinstance(queries, Lookup):
        pairs *= examples.rows.reshape(B * T, -1)[:, queries.ids.reshape(-1)]
    elif isinstance(examples, Outer) and isinstance(queries, Outer):
        pairs *= examples.rows.reshape(B * T, -1) @ queries.rows.reshape(Q * S, -1).T
    return pairs.view(B, T, Q, S).sum(3)


def contract(examples: Factored, queries_QRC: Tensor) -> Tensor:
    """``<grad_{b,t}, grad_q>`` for each place and query, ``[B, T, Q]``, with the queries' gradients dense."""
    B, T = examples.columns.shape[:2]
    columns = examples.columns.flatten(0, 1)
    if isinstance(examples, Lookup):
        along_columns = queries_QRC[:, examples.ids.flatten()]
        return (along_columns * columns).sum(-1).T.reshape(B, T, -1)
    rows = examples.rows.flatten(0, 1)
    if rows.shape[1] >= columns.shape[1]:  # the longer axis first: what is left is smaller
        return ((rows @ queries_QRC) * columns).sum(-1).T.reshape(B, T, -1)
    return ((columns @ queries_QRC.transpose(1, 2)) * rows).sum(-1).T.reshape(B, T, -1)


def own_gram(first: Factored, second: Factored) -> Tensor:
    """``<grad_b, grad'_b>`` of the same examples' two parts, ``[B]``, from the factors alone."""
    pairs_BTS = first.columns @ second.columns.transpose(1, 2)
    if isinstance(first, Outer) and isinstance(second, Outer):
        pairs_BTS *= first.rows @ second.rows.transpose(1, 2)
    elif isinstance(first, Lookup) and isinstance(second, Lookup):
        pairs_BTS *= first.ids[:, :, None] == second.ids[:, None, :]
    elif isinstance(first, Lookup) and isinstance(second, Outer):
        index = first.ids[:, None, :].expand(-1, num_places(second), -1)
        pairs_BTS *= second.rows.gather(2, index).transpose(1, 2)
    else:
        return own_gram(second, first)
    return pairs_BTS.sum((1, 2))

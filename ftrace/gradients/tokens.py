"""Inner products by token: which tokens of an example its score comes from."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from torch import Tensor

from ftrace.gradients.parts import Dense, Lookup, Outer, Positions, accumulation_dtype, flat_rows
from ftrace.gradients.products import products_by_position
from ftrace.gradients.queries import QueryGradients
from ftrace.gradients.recording import Recording
from ftrace.gradients.rules import Rule


@dataclass(frozen=True)
class TokenProducts:
    """Contributions of each position of each example through one run of one layer.

    Args:
        layer: The layer's name.
        parameters: The parameters that are summed over.
        products: ``[B, T, Q]``, where T are the positions of the layer's input: tokens, in a language model.
        of_pairs: Whether positions are pairs of tokens, as in a table of relative positions: all of the token that
            attends first, then all of the next one.
    """

    layer: str
    parameters: tuple[str, ...]
    products: Tensor
    of_pairs: bool = False


def inner_products_by_token(
    recording: Recording, queries: QueryGradients, names: Container[str] | None = None
) -> list[TokenProducts]:
    """Compute ``<grad_{b,t}, grad_q>`` for each position, layer run by layer run, in the order of the forward pass.

    Summed over positions and runs, these are exactly the inner products of the examples' gradients. Runs are kept apart
    since their positions need not be the same: an encoder has other tokens than its decoder.

    Args:
        recording: A pass of B examples, after backward, that was not projected.
        queries: Gradients of Q queries.
        names: Parameters to sum over; default: all that examples and queries have a gradient of.

    Raises:
        ValueError: If the recording is projected, or a layer's positions are not known (as in layers that only the
            fallback covers, and in grouped convolutions).
    """
    if recording.projections is not None:
        raise ValueError("products by token need unprojected gradients: expected a recording without projection")
    products_by_run = []
    for layer, parts in recording.runs():
        wanted = [
            (name, part) for name, part in parts if name in queries.gradients.parts and (names is None or name in names)
        ]
        total = None
        for name, part in wanted:
            if isinstance(part, Dense):
                raise ValueError(
                    f"layer {layer.path!r} ({type(layer.module).__name__}) doesn't keep positions apart, so its "
                    "products can't be told token by token: leave its parameters out of names"
                )
            products = (
                _of_positions(part, queries, name) if isinstance(part, Positions) else _of_factors(part, queries, name)
            )
            total = products if total is None else total + products
        if total is not None:
            of_pairs = isinstance(layer.rule, Rule) and layer.rule.lookup == "shared"
            parameters = tuple(dict.fromkeys(name for name, _ in wanted))
            products_by_run.append(TokenProducts(layer.path, parameters, total, of_pairs))
    return products_by_run


def _of_positions(part: Positions, queries: QueryGradients, name: str) -> Tensor:
    value = part.value.to(accumulation_dtype(part.value))
    return value @ flat_rows(queries.gradients.dense(name)).T


def _of_factors(part: Outer | Lookup, queries: QueryGradients, name: str) -> Tensor:
    B, T = part.columns.shape[:2]
    products = part.columns.new_zeros(B, T, len(queries), dtype=accumulation_dtype(part.columns))
    line = queries.plan_positions(name, part, B)
    (way,) = line.ways
    assert way != "joined"
    for of_examples, of_positions, of_queries, block in products_by_position(part, queries, line, way):
        products[of_examples, of_positions, of_queries] += block
    return products

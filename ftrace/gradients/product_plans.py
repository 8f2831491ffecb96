"""Plans of products: how each parameter's products are taken, decided before anything is multiplied.

This is the only place that decides. Multiplication (``products.py``) follows the plan line by line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

from ftrace.gradients.costs import (
    NormWay,
    Rates,
    Shape,
    Way,
    cheapest_norm_way,
    dense_queries_seconds,
    norms_of_dense_seconds,
    norms_seconds,
    product_seconds,
    scaling_seconds,
)

WAYS: tuple[Way, ...] = ("gram", "materialised", "contraction")


@dataclass(frozen=True)
class PlanLine:
    """Plan for one parameter: how its products and its examples' norms are taken.

    Args:
        parameter: Its name.
        parts: Kind and number of positions of each part of the examples' gradient.
        ways: For each part, one of :data:`WAYS`. All are ``joined`` where both gradients are dense, and are multiplied
            together with others. Empty where the queries have no gradient of the parameter.
        norms: How the examples' norms are taken: ``shared`` reads them off the dense gradients that the products need
            anyway. None where they are not wanted.
        keeps_dense: Whether the queries' dense gradients are kept for the next batch.
        seconds: The estimate for one batch of examples; 0 for what is joined.
    """

    parameter: str
    parts: tuple[tuple[str, int], ...]
    ways: tuple[Way | Literal["joined"], ...]
    norms: NormWay | Literal["shared"] | None
    keeps_dense: bool
    seconds: float

    @property
    def is_joined(self) -> bool:
        """Whether the product is taken together with other parameters'."""
        return "joined" in self.ways


@dataclass(frozen=True)
class Plan:
    """Plan for the products of a batch: the joined parameters first, then all others one by one, in order."""

    lines: tuple[PlanLine, ...]

    @property
    def joined(self) -> list[str]:
        """Parameters whose products are taken together."""
        return [line.parameter for line in self.lines if line.is_joined]

    def __str__(self) -> str:
        width = max((len(line.parameter) for line in self.lines), default=0)
        text = []
        for line in self.lines:
            parts = " + ".join(f"{kind} of {positions}" if kind != "dense" else kind for kind, positions in line.parts)
            ways = " + ".join(line.ways) or "no query gradient"
            cost = f"{1e3 * line.seconds:9.3f} ms" if line.seconds else ""
            text.append(f"{line.parameter:{width}}  {parts:24}  {ways:28}{cost}".rstrip())
        return "\n".join(text)


@dataclass(frozen=True)
class PlanOptions:
    """Options that hold for all products with the same queries.

    Args:
        rates: Of the device.
        way: The way to take wherever there is a choice; None for the cheapest.
        batches: How many batches of examples the queries' gradients serve.
    """

    rates: Rates
    way: Way | None = None
    batches: float = 1


@lru_cache(maxsize=2**16)
def plan_parameter(
    name: str,
    shape: Shape,
    options: PlanOptions,
    *,
    norms: bool = False,
    fits: bool = True,
    examples_scaled: bool = False,
    queries_scaled: bool = False,
    by_position: bool = False,
) -> PlanLine:
    """Choose how the products of one parameter are taken: the cheapest of all possible ways.

    Args:
        name: The parameter.
        shape: Of the parameter, the examples and the queries.
        options: Of the queries.
        norms: Whether the examples' norms are wanted too.
        fits: Whether there is memory to keep the queries' dense gradients. If not, they are formed for each batch.
        examples_scaled: Whether the examples' gradients have an elementwise scale, so that no gram product of a matrix
            product's factors is possible. A lookup's gradient takes it up.
        queries_scaled: The same of the queries'.
        by_position: Whether a product is wanted for each position of an example.

    Raises:
        ValueError: If the way that was asked for is not possible.
    """
    norm_way = cheapest_norm_way(shape, options.rates, scaled=examples_scaled) if norms else None
    if not shape.query_parts:
        seconds = norms_seconds(shape, options.rates, norm_way) if norm_way is not None else 0.0
        return PlanLine(name, shape.example_parts, (), norm_way, False, seconds)
    kinds = {kind for kind, _ in (*shape.example_parts, *shape.query_parts)}
    if kinds == {"dense"} and not (examples_scaled or queries_scaled):
        joined: Literal["joined"] = "joined"
        ways = tuple(joined for _ in shape.example_parts)
        return PlanLine(name, shape.example_parts, ways, "shared" if norms else None, False, 0.0)
    candidates = _candidates(name, shape, options, norm_way, fits=fits, scaled=examples_scaled)
    if examples_scaled:
        candidates = [line for line in candidates if not _is_gram_of_outer(line)]
    if queries_scaled:
        candidates = [line for line in candidates if "gram" not in line.ways]
    if by_position:
        candidates = [line for line in candidates if "materialised" not in line.ways]
    if not candidates:
        raise ValueError(
            f"way={options.way!r} is not possible for {name!r}: a gradient is no plain product of factors, "
            "or positions are to be told apart. Leave the way to be chosen"
        )
    return min(candidates, key=lambda line: line.seconds)


def _is_gram_of_outer(line: PlanLine) -> bool:
    return any(kind == "outer" and way == "gram" for (kind, _), way in zip(line.parts, line.ways, strict=True))


def _candidates(
    name: str, shape: Shape, options: PlanOptions, norm_way: NormWay | None, *, fits: bool, scaled: bool
) -> list[PlanLine]:
    """List every combination of ways for the examples' parts, with its cost."""
    rates, lines = options.rates, []
    for ways in product(*(_ways(kind, shape, options.way) for kind, _ in shape.example_parts)):
        seconds = product_seconds(shape, rates, ways) + (scaling_seconds(shape, rates, ways) if scaled else 0.0)
        needs_dense = any(way != "gram" for way in ways)
        if needs_dense:
            once = dense_queries_seconds(shape, rates)
            seconds += once / options.batches if fits else once
        norms: NormWay | Literal["shared"] | None = norm_way
        if norm_way is not None:
            shared = norms_of_dense_seconds(shape, rates)
            alone = min(norms_seconds(shape, rates, "gram"), norms_seconds(shape, rates, "materialised"))
            if all(way == "materialised" for way in ways) and shared <= alone:
                norms = "shared"
            seconds += shared if norms == "shared" else alone
        lines.append(PlanLine(name, shape.example_parts, ways, norms, needs_dense and fits, seconds))
    return lines


def _ways(kind: str, shape: Shape, way: Way | None) -> tuple[Way, ...]:
    """List the ways in which one part of the examples' gradient can be multiplied; just the given one, if any."""
    if kind == "dense":
        return ("materialised",)
    without_gram = any(query_kind == "dense" for query_kind, _ in shape.query_parts)
    return tuple(each for each in WAYS if way in (None, each) and not (without_gram and each == "gram"))

"""What a product costs each way, by rates that are measured on the machine at hand.

A step is limited either by arithmetic or by the memory that it touches, so its time is the larger of the two, plus what
any call costs. Operations alone would mislead: a gram product at few queries is faster though it takes more of them.

Shape letters: B examples, T places in an example, Q queries, S places in a query, R rows and C columns of the
parameter, P = R * C.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

import torch

from ftrace.gradients.parts import Lookup, Outer, Part, num_places

Way = Literal["gram", "materialised", "contraction"]
WAYS: tuple[Way, ...] = ("gram", "materialised", "contraction")


@dataclass(frozen=True)
class Rates:
    """How fast a device is.

    Args:
        matmul: Operations a second in large matrix products.
        memory: Bytes a second, read or written, in elementwise work.
        gather: Bytes a second, read or written, where rows are gathered or scattered.
        call: Seconds that any call takes.
        element: Bytes of a number.
    """

    matmul: float
    memory: float
    gather: float
    call: float
    element: int = 4

    def product(self, m: int, n: int, k: int, batch: int = 1) -> float:
        """Seconds for ``batch`` matrix products of ``[m, k]`` with ``[k, n]``."""
        touched = self.element * batch * (m * k + k * n + m * n)
        return max(2 * batch * m * n * k / self.matmul, touched / self.memory) + self.call

    def pass_over(self, elements: int) -> float:
        """Seconds to read or write so many numbers."""
        return self.element * elements / self.memory + self.call

    def gathering(self, elements: int) -> float:
        """Seconds to read or write so many numbers, row by row from anywhere."""
        return self.element * elements / self.gather + self.call


@cache
def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The rates of a device, measured once in a process: some 30 ms. No random state is touched."""

    def seconds(run: Callable[[], object], repeats: int = 5) -> float:
        run()
        times = []
        for _ in range(repeats):
            _synchronize(device)
            start = time.perf_counter()
            run()
            _synchronize(device)
            times.append(time.perf_counter() - start)
        return sorted(times)[repeats // 2]

    side = 512 if device.type == "cpu" else 4096
    square = torch.ones(side, side, device=device, dtype=dtype)
    out = torch.empty_like(square)
    matmul = 2 * side**3 / seconds(lambda: torch.mm(square, square, out=out))
    flat = torch.ones(2**22 if device.type == "cpu" else 2**26, device=device, dtype=dtype)
    memory = 2 * flat.nbytes / seconds(lambda: flat.mul_(1))
    table = flat.view(-1, 256)
    rows = torch.arange(0, len(table), 2, device=device).flip(0)
    gather = 2 * len(rows) * 256 * flat.element_size() / seconds(lambda: table[rows])
    few = flat[:8]
    call = seconds(lambda: [few.mul_(1) for _ in range(100)]) / 100
    return Rates(matmul, memory, gather, call, flat.element_size())


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass(frozen=True)
class Shape:
    """What the cost of a product depends on, for one parameter.

    Args:
        examples: B.
        queries: Q.
        rows: R.
        columns: C.
        example_parts: For each part, whether it is an ``outer``, a ``lookup`` or ``dense``, and its T.
        query_parts: The same of the queries, with their S.
    """

    examples: int
    queries: int
    rows: int
    columns: int
    example_parts: tuple[tuple[str, int], ...]
    query_parts: tuple[tuple[str, int], ...]


def shape_of_parts(parts: Sequence[Part]) -> tuple[tuple[str, int], ...]:
    """Kinds and places of parts, as :class:`Shape` wants them."""
    return tuple(
        ("outer", num_places(part))
        if isinstance(part, Outer)
        else ("lookup", num_places(part))
        if isinstance(part, Lookup)
        else ("dense", 1)
        for part in parts
    )


@dataclass(frozen=True)
class Choice:
    """How one parameter's products are taken.

    Args:
        ways: For each part of the examples' gradient.
        shares_dense: Whether the examples' norms are read off the dense gradients that the products need anyway.
        seconds: The estimate for one batch.
        keeps_dense: Whether the queries' dense gradients are kept for the next batch.
    """

    ways: tuple[Way, ...]
    shares_dense: bool
    seconds: float
    keeps_dense: bool

    @property
    def needs_dense(self) -> bool:
        """Whether the queries' gradients are made dense."""
        return any(way != "gram" for way in self.ways)


def choices(
    shape: Shape, rates: Rates, *, norms: bool, fits: bool, batches: float = 1, only: Way | None = None
) -> list[Choice]:
    """All ways to take one parameter's products, the cheapest first.

    Args:
        shape: Of the parameter and both sides.
        rates: Of the device.
        norms: Whether the examples' norms are wanted too.
        fits: Whether there is memory to keep the queries' dense gradients. If not, they are made anew for each batch.
        batches: How many batches the queries' gradients serve.
        only: Just the choices that take factored parts this way.
    """
    found = []
    for ways in product(*(_ways(kind, shape, only) for kind, _ in shape.example_parts)):
        seconds = _seconds(shape, rates, ways)
        needs_dense = any(way != "gram" for way in ways)
        if needs_dense:
            once = sum(_materialise(kind, S, shape.queries, shape, rates) for kind, S in shape.query_parts)
            seconds += once / batches if fits else once
        shares_dense = False
        if norms:
            shared = rates.pass_over(shape.examples * shape.rows * shape.columns)
            shares_dense = all(way == "materialised" for way in ways) and shared <= _norms_alone(shape, rates)
            seconds += shared if shares_dense else _norms_alone(shape, rates)
        found.append(Choice(ways, shares_dense, seconds, needs_dense and fits))
    return sorted(found, key=lambda choice: choice.seconds)


def own_gram_is_cheaper(shape: Shape, rates: Rates) -> bool:
    """Whether norms of the examples' gradients are cheaper from the factors than densely."""
    return _own_gram(shape, rates) < _dense_norms(shape, rates)


def _ways(kind: str, shape: Shape, only: Way | None) -> tuple[Way, ...]:
    if kind == "dense":
        return ("materialised",)
    without_gram = any(query_kind == "dense" for query_kind, _ in shape.query_parts)
    return tuple(way for way in WAYS if only in (None, way) and not (without_gram and way == "gram"))


def _seconds(shape: Shape, rates: Rates, ways: Sequence[Way]) -> float:
    B, Q, R, C = shape.examples, shape.queries, shape.rows, shape.columns
    seconds = rates.product(B, Q, R * C) if "materialised" in ways else 0.0
    for (kind, T), way in zip(shape.example_parts, ways, strict=True):
        if way == "materialised":
            seconds += _materialise(kind, T, B, shape, rates)
        elif way == "contraction":
            left_over = B * T * Q * (C if kind == "lookup" else min(R, C))
            if kind == "lookup":
                seconds += rates.gathering(2 * left_over)
            else:
                seconds += rates.product(B * T, Q * min(R, C), max(R, C))
            seconds += rates.pass_over(3 * left_over)
        else:
            seconds += sum(_gram(kind, T, other, S, shape, rates) for other, S in shape.query_parts)
    return seconds


def _norms_alone(shape: Shape, rates: Rates) -> float:
    return min(_own_gram(shape, rates), _dense_norms(shape, rates))


def _dense_norms(shape: Shape, rates: Rates) -> float:
    dense = sum(_materialise(kind, T, shape.examples, shape, rates) for kind, T in shape.example_parts)
    return dense + rates.pass_over(shape.examples * shape.rows * shape.columns)


def _materialise(kind: str, places: int, rows: int, shape: Shape, rates: Rates) -> float:
    """Making one side's gradients dense."""
    if kind == "outer":
        return rates.product(shape.rows, shape.columns, places, batch=rows)
    if kind == "lookup":
        return rates.pass_over(rows * shape.rows * shape.columns) + rates.gathering(3 * rows * places * shape.columns)
    return 0.0


def _gram(kind: str, T: int, other: str, S: int, shape: Shape, rates: Rates) -> float:
    m, n = shape.examples * T, shape.queries * S
    seconds = rates.product(m, n, shape.columns) + rates.pass_over(4 * m * n)
    if kind == other == "outer":
        return seconds + rates.product(m, n, shape.rows)
    return seconds + rates.gathering(2 * m * n)


def _own_gram(shape: Shape, rates: Rates) -> float:
    if any(kind == "dense" for kind, _ in shape.example_parts):
        return math.inf
    seconds, B = 0.0, shape.examples
    for (first, T), (second, S) in product(shape.example_parts, repeat=2):
        seconds += rates.product(T, S, shape.columns, batch=B) + rates.pass_over(4 * B * T * S)
        if first == second == "outer":
            seconds += rates.product(T, S, shape.rows, batch=B)
    return seconds

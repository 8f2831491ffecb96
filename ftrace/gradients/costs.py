"""Costs of products, estimated from rates that are measured on the device at hand.

A step is limited either by arithmetic or by memory traffic, so its time is the larger of the two, plus the overhead of
a call. Counting operations alone would mislead: with few queries, a gram product is faster although it takes more of
them.

Shape letters: B examples, T positions in an example, Q queries, S positions in a query, R rows and C columns of the
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

from ftrace.gradients.parts import Lookup, Outer, Part, num_positions
from ftrace.gradients.row_products import products_of_rows

Way = Literal["gram", "materialised", "contraction"]
NormWay = Literal["gram", "materialised"]


@dataclass(frozen=True)
class Rates:
    """Speed of a device.

    Args:
        matmul: Operations per second in large matrix products.
        memory: Bytes per second, read or written, in elementwise work.
        gather: Bytes per second, read or written, where rows are gathered or scattered.
        call: Overhead of any call, in seconds.
        element: Bytes per number.
        rows: Operations per second in large products of rows with rows; default: as in all matrix products.
    """

    matmul: float
    memory: float
    gather: float
    call: float
    element: int = 4
    rows: float | None = None

    def product(self, m: int, n: int, k: int, batch: int = 1) -> float:
        """Estimate the seconds of ``batch`` matrix products of ``[m, k]`` with ``[k, n]``."""
        touched = self.element * batch * (m * k + k * n + m * n)
        return max(2 * batch * m * n * k / self.matmul, touched / self.memory) + self.call

    def row_product(self, m: int, n: int, k: int) -> float:
        """Estimate the seconds of a product of ``[m, k]`` with ``[n, k]``, rows with rows."""
        touched = self.element * (m * k + k * n + m * n)
        return max(2 * m * n * k / (self.rows or self.matmul), touched / self.memory) + self.call

    def pass_over(self, elements: int) -> float:
        """Estimate the seconds that reading or writing so many numbers takes."""
        return self.element * elements / self.memory + self.call

    def gathering(self, elements: int) -> float:
        """Estimate the seconds that reading or writing so many numbers takes, row by row in any order."""
        return self.element * elements / self.gather + self.call


@cache
def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure the rates of a device, once per process: some 30 ms. No random state is touched."""

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

    size = 512 if device.type == "cpu" else 4096
    square = torch.ones(size, size, device=device, dtype=dtype)
    out = torch.empty_like(square)
    matmul = 2 * size**3 / seconds(lambda: torch.mm(square, square, out=out))
    rows = 2 * size**3 / seconds(lambda: products_of_rows(square, square))
    flat = torch.ones(2**22 if device.type == "cpu" else 2**26, device=device, dtype=dtype)
    memory = 2 * flat.nbytes / seconds(lambda: flat.mul_(1))
    table = flat.view(-1, 256)
    places = torch.arange(0, len(table), 2, device=device).flip(0)
    gather = 2 * len(places) * 256 * flat.element_size() / seconds(lambda: table[places])
    few = flat[:8]
    call = seconds(lambda: [few.mul_(1) for _ in range(100)]) / 100
    return Rates(matmul, memory, gather, call, flat.element_size(), rows)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass(frozen=True)
class Shape:
    """Everything about one parameter's gradients that the cost of a product depends on.

    Args:
        examples: B.
        queries: Q.
        rows: R.
        columns: C.
        example_parts: For each part, its kind (``outer``, ``lookup`` or ``dense``) and its T.
        query_parts: The same of the queries, with their S.
    """

    examples: int
    queries: int
    rows: int
    columns: int
    example_parts: tuple[tuple[str, int], ...]
    query_parts: tuple[tuple[str, int], ...]


def shape_of_parts(parts: Sequence[Part]) -> tuple[tuple[str, int], ...]:
    """List the kinds and numbers of positions of parts, in the form of :class:`Shape`."""
    return tuple(
        ("outer", num_positions(part))
        if isinstance(part, Outer)
        else ("lookup", num_positions(part))
        if isinstance(part, Lookup)
        else ("dense", 1)
        for part in parts
    )


def product_seconds(shape: Shape, rates: Rates, ways: Sequence[Way]) -> float:
    """Estimate a batch's products, with one way for each of the examples' parts.

    The queries' dense gradients are taken as given: see :func:`dense_queries_seconds`.
    """
    B, Q, R, C = shape.examples, shape.queries, shape.rows, shape.columns
    seconds = rates.row_product(B, Q, R * C) if "materialised" in ways else 0.0
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


def scaling_seconds(shape: Shape, rates: Rates, ways: Sequence[Way]) -> float:
    """Estimate multiplying by the examples' elementwise scale, in those ways.

    What is made dense is multiplied on the smaller side, block by block in the processor's cache. A contraction of a
    matrix product's factors needs all queries' dense gradients multiplied, a lookup's gradient only what it looked up.
    """
    B, Q, P = shape.examples, shape.queries, shape.rows * shape.columns
    seconds = rates.pass_over(min(B, Q) * P) if "materialised" in ways else 0.0
    for (kind, T), way in zip(shape.example_parts, ways, strict=True):
        if way != "materialised":
            seconds += rates.gathering(3 * B * T * shape.columns) if kind == "lookup" else rates.pass_over(2 * Q * P)
    return seconds


def dense_queries_seconds(shape: Shape, rates: Rates) -> float:
    """Estimate making the queries' gradients dense."""
    return sum(_materialise(kind, S, shape.queries, shape, rates) for kind, S in shape.query_parts)


def norms_of_dense_seconds(shape: Shape, rates: Rates) -> float:
    """Estimate the examples' norms where their dense gradients are formed for the products anyway."""
    return rates.pass_over(shape.examples * shape.rows * shape.columns)


def norms_seconds(shape: Shape, rates: Rates, way: NormWay) -> float:
    """Estimate the examples' norms by themselves; infinite where the way is impossible."""
    if way == "materialised":
        dense = sum(_materialise(kind, T, shape.examples, shape, rates) for kind, T in shape.example_parts)
        return dense + norms_of_dense_seconds(shape, rates)
    if any(kind == "dense" for kind, _ in shape.example_parts):
        return math.inf
    seconds, B = 0.0, shape.examples
    for (first, T), (second, S) in product(shape.example_parts, repeat=2):
        seconds += rates.product(T, S, shape.columns, batch=B) + rates.pass_over(4 * B * T * S)
        if first == second == "outer":
            seconds += rates.product(T, S, shape.rows, batch=B)
    return seconds


def cheapest_norm_way(shape: Shape, rates: Rates, *, scaled: bool) -> NormWay:
    """Choose how the examples' norms are taken by themselves.

    Args:
        shape: Of the parameter and the examples.
        rates: Of the device.
        scaled: Whether the examples' gradients have an elementwise scale, so that their factors don't suffice.
    """
    if not scaled and norms_seconds(shape, rates, "gram") < norms_seconds(shape, rates, "materialised"):
        return "gram"
    return "materialised"


def _materialise(kind: str, positions: int, count: int, shape: Shape, rates: Rates) -> float:
    """Estimate making the gradients of so many examples, or queries, dense."""
    if kind == "outer":
        return rates.product(shape.rows, shape.columns, positions, batch=count)
    if kind == "lookup":
        written = rates.pass_over(count * shape.rows * shape.columns)
        return written + rates.gathering(3 * count * positions * shape.columns)
    return 0.0


def _gram(kind: str, T: int, other: str, S: int, shape: Shape, rates: Rates) -> float:
    m, n = shape.examples * T, shape.queries * S
    seconds = rates.row_product(m, n, shape.columns) + rates.pass_over(4 * m * n)
    if kind == other == "outer":
        return seconds + rates.row_product(m, n, shape.rows)
    return seconds + rates.gathering(2 * m * n)

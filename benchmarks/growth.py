"""How the cost of attribution grows with examples, queries, tokens and width.

    python benchmarks/growth.py

Each size is doubled three times, the others held. For the products alone, exact and projected, and for all of TracIn at
one snapshot (passes and products), the table shows seconds and the slope of a straight line through their logarithms,
beside that of the operations in the formulas: per weight with I inputs and O outputs, the cheaper of
2 N T Q T (I + O) and 2 N I O (T + Q) + 2 Q T I O; projected 2 (N + Q) T (I + O) K + 2 (N + Q) T K^2 + 2 N Q K^2.

Limit: no exponent above that of the formulas, beyond the noise of the timing (0.1).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jsonargparse import auto_cli
from peer_methods import losses
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from ftrace.gradients import GradientCapture, PerExampleGradients, Projection, QueryGradients, inner_products

SIDE = 16


@dataclass(frozen=True)
class Sizes:
    """What is multiplied.

    Args:
        examples: N.
        queries: Q.
        tokens: T, of examples and queries alike.
        width: Of the model; its two layers have weights of width x 3 width and so on.
    """

    examples: int = 128
    queries: int = 16
    tokens: int = 32
    width: int = 128

    def weights(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each matrix product with a weight."""
        width = self.width
        block = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        return [*block * 2, (width, 512)]

    def exact_operations(self) -> float:
        """Of the exact products."""
        N, Q, T = self.examples, self.queries, self.tokens
        return sum(
            min(2 * N * T * Q * T * (i + o), 2 * N * i * o * (T + Q) + 2 * Q * T * i * o) for i, o in self.weights()
        )

    def projected_operations(self) -> float:
        """Of the projections and the projected products."""
        N, Q, T, K = self.examples, self.queries, self.tokens, SIDE
        return sum(2 * (N + Q) * T * ((i + o) * K + K * K) + 2 * N * Q * K * K for i, o in self.weights())

    def pass_operations(self) -> float:
        """Of forward passes, and of backward passes without weight gradients; attention's own products too."""
        rows, T = self.examples + self.queries, self.tokens
        return 4 * rows * T * (sum(i * o for i, o in self.weights()) + 2 * 2 * T * self.width)


def main(rounds: int = 5) -> None:
    """Measure and print a table.

    Args:
        rounds: How often each size is measured; medians are taken.
    """
    table = Table("growing", "what", "seconds at 1, 2, 4, 8 times", "exponent", "of the formulas")
    for name in ("examples", "queries", "tokens", "width"):
        sizes = [replace(Sizes(), **{name: getattr(Sizes(), name) * 2**step}) for step in range(4)]
        seconds: list[list[dict[str, float]]] = [[] for _ in sizes]
        for _ in range(rounds):
            for size, found in zip(sizes, seconds, strict=True):
                found.append(measure(size))
        for what in ("products", "projected: hooks and products", "all of it, exact"):
            medians = [statistics.median(one[what] for one in found) for found in seconds]
            table.add_row(
                name,
                what,
                "  ".join(f"{value:.4f}" for value in medians),
                f"{exponent(medians):.2f}",
                f"{exponent([operations(size, what) for size in sizes]):.2f}",
            )
    Console(width=130).print(table)


def operations(sizes: Sizes, what: str) -> float:
    """By the formulas."""
    if what == "products":
        return sizes.exact_operations()
    return sizes.pass_operations() + (
        sizes.projected_operations() if what.startswith("projected") else sizes.exact_operations()
    )


def exponent(values: Sequence[float]) -> float:
    """Slope of log2(value) over doublings, by least squares."""
    logs = [math.log2(value) for value in values]
    steps = range(len(logs))
    middle = statistics.mean(steps)
    return sum((step - middle) * log for step, log in zip(steps, logs, strict=True)) / sum(
        (step - middle) ** 2 for step in steps
    )


def measure(sizes: Sizes) -> dict[str, float]:
    """Seconds of each part of the work, once."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512, n_positions=512, n_embd=sizes.width, n_layer=2, n_head=4, use_cache=False, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    rows = torch.randint(512, (sizes.examples + sizes.queries, sizes.tokens))
    exact, products = _attribute(model, rows, sizes, None)
    projected, _ = _attribute(model, rows, sizes, Projection(SIDE))
    return {"products": products, "projected: hooks and products": projected, "all of it, exact": exact}


def _attribute(
    model: GPT2LMHeadModel, rows: Tensor, sizes: Sizes, projection: Projection | None
) -> tuple[float, float]:
    """Seconds of everything, and of the products alone (the queries' preparation included)."""
    products = 0.0
    start = time.perf_counter()
    with GradientCapture(model, projection=projection) as capture:
        names = capture.coverage.covered
        queries = QueryGradients(_gradients(capture, model, rows[: sizes.queries]), batches=sizes.examples / 32)
        for ids in rows[sizes.queries :].split(32):
            examples = _gradients(capture, model, ids)
            before = time.perf_counter()
            inner_products(examples, queries, names)
            products += time.perf_counter() - before
    return time.perf_counter() - start, products


def _gradients(capture: GradientCapture, model: GPT2LMHeadModel, ids: Tensor) -> PerExampleGradients:
    batches = []
    for batch in ids.split(32):
        with capture.recording(len(batch)) as recording:
            recording.backward(losses(model, batch))
        batches.append(recording.gradients())
    return PerExampleGradients.stack(batches)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

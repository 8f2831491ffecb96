"""Whitening of many parameters at once equals whitening one by one, whichever of them take part in a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ftrace.gradients import (
    Dense,
    PerExampleGradients,
    Projection,
    RunningAutocorrelation,
    autocorrelation,
    layer_of,
    whitener,
    whiteners,
)
from ftrace.online.scoring import white_stacks
from ftrace.online.scoring.whitened import WhitenedProducts, Whitening
from ftrace.scores import Sum
from helpers import oracle

SIDE, WINDOW, DAMPING = 2, 5, 0.2
NAMES = tuple(f"{layer}.{kind}" for layer in "abcde" for kind in ("bias", "weight"))
STEPS: list[tuple[Sequence[str], list[Sequence[str]]]] = [  # names of the optimizer, and of each batch's gradients
    (NAMES[:6], [NAMES[:6]]),
    (NAMES[:6], [NAMES[:6], NAMES[:6]]),
    (NAMES, [NAMES[1:], NAMES[:9]]),  # some were unfrozen
    (NAMES[6:], [NAMES[6:]]),  # another optimizer's step
    (NAMES, [NAMES[3:5]]),
    (NAMES, []),
    (NAMES, [NAMES]),
]


class Slow:
    """Sums of outer products, parameter by parameter and example by example."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def step(self, names: Sequence[str], batches: Sequence[Mapping[str, Tensor]]) -> None:
        for name in set(names) & self.sums.keys():
            self.sums[name] = self.sums[name] * (1 - 1 / WINDOW)
            self.weights[name] *= 1 - 1 / WINDOW
        for batch in batches:
            for name, rows in batch.items():
                for row in rows:
                    self.sums[name] = self.sums.get(name, 0) + torch.outer(row, row)
                    self.weights[name] = self.weights.get(name, 0.0) + 1

    def cosines(
        self, examples: Mapping[str, Tensor], queries: Mapping[str, Tensor], names: Sequence[str]
    ) -> dict[str, Tensor]:
        """By layer, and in total under ""."""
        white = {}
        for name in self.sums:
            R = self.sums[name] / self.weights[name]
            damped = R + DAMPING * R.diagonal().mean() * torch.eye(len(R), dtype=R.dtype)
            white[name] = torch.linalg.inv(torch.linalg.cholesky(damped)).T
        of_examples = {n: rows @ white[n] for n, rows in examples.items() if n in names and n in white}
        of_queries = {n: rows @ white[n] for n, rows in queries.items() if n in white}
        norms, query_norms = (
            torch.stack([rows.square().sum(1) for rows in of.values()]).sum(0).sqrt()
            for of in (of_examples, of_queries)
        )
        found: dict[str, Tensor] = {}
        for name in of_examples.keys() & of_queries.keys():
            cosine = of_examples[name] @ of_queries[name].T / norms[:, None] / query_norms
            for part in ("", layer_of(name)):
                found[part] = found.get(part, 0) + cosine
        return found


def rows_of(names: Sequence[str], count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, SIDE**2, generator=generator, dtype=torch.float64) for name in names}


def as_gradients(rows: Mapping[str, Tensor]) -> PerExampleGradients:
    count = len(next(iter(rows.values())))
    parts: Any = {name: [Dense(of_name.view(count, SIDE, SIDE))] for name, of_name in rows.items()}
    return PerExampleGradients(parts, {name: torch.Size([SIDE, SIDE]) for name in rows}, count)


def held_against(found: Mapping[Sum, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert {key.part for key in found} == expected.keys()
    for key, values in found.items():
        assert oracle.relative_error(values, expected[key.part]) < 1e-9


@pytest.mark.parametrize("stacked", [1, 3, 64])
def test_scores_equal_those_of_parameters_one_by_one(stacked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (white_stacks, autocorrelation):
        monkeypatch.setattr(module, "STACKED", stacked)
    whitened = WhitenedProducts(
        Whitening(window=WINDOW, damping=DAMPING), Projection(SIDE), NAMES[:6], divides=False, by_layer=True
    )
    slow = Slow()
    queries = rows_of(NAMES[:9], 3, seed=100)
    for number, (names, batches) in enumerate(STEPS):
        whitened.cover(NAMES[:6] if number < 2 else NAMES)
        contributions = [
            rows_of(of_batch, 4 - index, seed=10 * number + index) for index, of_batch in enumerate(batches)
        ]
        whitened.step(contributions, names)
        slow.step(names, contributions)
        whitened.refresh(as_gradients(queries))
        for of_examples in (NAMES, NAMES[2:4], NAMES[:7]):
            examples = rows_of(of_examples, 5, seed=200)
            held_against(whitened.cosines(examples, NAMES), slow.cosines(examples, queries, NAMES))
        examples = rows_of(NAMES, 5, seed=300)
        held_against(whitened.cosines(examples, NAMES[:4]), slow.cosines(examples, queries, NAMES[:4]))
    assert whitened.autocorrelation.weights == pytest.approx(slow.weights)
    resumed = WhitenedProducts(
        Whitening(window=WINDOW, damping=DAMPING), Projection(SIDE), NAMES, divides=False, by_layer=True
    )
    resumed.load([whitened.state()], whitened.state())
    resumed.take_whitened(whitened.queries, as_gradients(queries))
    last = rows_of(NAMES, 2, seed=7)
    slow.step(NAMES, [last])
    for one in (whitened, resumed):
        one.step([last], NAMES)
        one.refresh(as_gradients(queries))
        held_against(one.cosines(examples, NAMES), slow.cosines(examples, queries, NAMES))


@pytest.mark.parametrize("size", [1, 3, 64, 66, 96])
def test_whiteners_of_several_blocks_equal_those_of_each(size: int) -> None:
    rows = torch.randn(3, 2 * size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    R = rows.transpose(1, 2) @ rows
    R[1] = 0
    together = whiteners(R, DAMPING)
    for block, found in zip(R, together, strict=True):
        expected = torch.eye(size, dtype=R.dtype)
        if block.any():
            damped = block + DAMPING * block.diagonal().mean() * expected
            expected = torch.linalg.inv(torch.linalg.cholesky(damped)).T
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(whitener(block, DAMPING), found, rtol=1e-12, atol=0)
    coarse = whiteners(R.float(), DAMPING)
    torch.testing.assert_close(coarse.double(), together, rtol=1e-3, atol=1e-5)
    assert oracle.relative_error(coarse.double(), together) < 1e-4


def test_very_small_damping_is_computed_in_float64() -> None:
    rows = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    R = (rows.T @ rows)[None]  # of rank 4: without enough digits it has no Cholesky factor
    white = whiteners(R, 1e-4)[0].double()
    damped = R[0].double() + 1e-4 * R[0].diagonal().mean() * torch.eye(40)
    assert oracle.relative_error(white.T @ damped @ white, torch.eye(40).double()) < 1e-3


def test_forgotten_blocks_begin_anew_and_others_go_on() -> None:
    running, slow = RunningAutocorrelation(WINDOW), Slow()
    first, second = rows_of(NAMES, 3, seed=0), rows_of(NAMES, 2, seed=1)
    running.step(NAMES, [first])
    running.forget([NAMES[2]])
    running.step(NAMES, [second])
    slow.step(NAMES, [first])
    del slow.sums[NAMES[2]], slow.weights[NAMES[2]]
    slow.step(NAMES, [second])
    assert running.weights == pytest.approx(slow.weights)
    for name, expected in slow.sums.items():
        assert oracle.relative_error(running.sums[name], expected) < 1e-9

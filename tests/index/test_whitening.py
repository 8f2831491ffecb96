from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ftrace.index import WhiteningSettings, autocorrelation_of, balanced_mix, make_whitening

SIZE, BLOCKS = 30, ("a", "b")


def with_spectrum(values: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize("mix", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("rank_share", [0.02, 0.1, 0.5])
def test_lambda_is_recovered_from_synthetic_spectra(mix: float, rank_share: float) -> None:
    """Where the queries' spectrum is the corpus's times (1 - lambda) / lambda at k, whatever it is elsewhere."""
    size = SIZE * len(BLOCKS)
    train = 100.0 * torch.arange(1, size + 1, dtype=torch.float64) ** -1.5
    queries = torch.exp(-torch.arange(size, dtype=torch.float64) / 7)
    place = max(1, round(rank_share * size)) - 1
    queries = queries * (train[place] / queries[place]) * (1 - mix) / mix
    shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(0))

    def in_blocks(values: Tensor, seed: int) -> dict[str, Tensor]:
        parts = values[shuffled].split(SIZE)
        return {name: with_spectrum(own, seed + i) for i, (name, own) in enumerate(zip(BLOCKS, parts, strict=True))}

    found, _ = balanced_mix(in_blocks(train, 1), in_blocks(queries, 5), rank_share)
    assert found == pytest.approx(mix, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_queries_in_float32_have_no_more_rank_than_they_are(count: int) -> None:
    rows = torch.randn(count, 2 * SIZE, generator=torch.Generator().manual_seed(0))
    train = {name: torch.eye(SIZE) for name in BLOCKS}
    mix, why = balanced_mix(train, autocorrelation_of(rows.double(), BLOCKS), rank_share=0.5)
    assert mix == 0
    assert f"span {2 * count} dimensions" in why


def test_too_few_queries_for_the_rule_are_not_mixed_in() -> None:
    rows = torch.randn(3, 2 * SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    train = {name: torch.eye(SIZE, dtype=torch.float64) for name in BLOCKS}
    mix, why = balanced_mix(train, autocorrelation_of(rows, BLOCKS), rank_share=0.5)
    assert mix == 0
    assert "span 6 dimensions" in why
    assert balanced_mix(train, autocorrelation_of(rows, BLOCKS), rank_share=0.05)[0] > 0


def test_white_rows_have_products_with_the_inverse_of_the_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    train, queries = (torch.randn(n, 2 * SIZE, dtype=torch.float64, generator=generator) for n in (90, 40))
    of_train, of_queries = autocorrelation_of(train, BLOCKS), autocorrelation_of(queries, BLOCKS)
    whitening = make_whitening(of_train, of_queries, WhiteningSettings(mix=0.3, damping=0.05))
    R = torch.zeros(2 * SIZE, 2 * SIZE, dtype=torch.float64)
    for place, name in enumerate(BLOCKS):
        own = slice(place * SIZE, (place + 1) * SIZE)
        mixed = 0.7 * of_train[name] + 0.3 * of_queries[name]
        R[own, own] = mixed + 0.05 * mixed.diagonal().mean() * torch.eye(SIZE, dtype=torch.float64)
    expected = train @ torch.linalg.inv(R) @ queries.T
    torch.testing.assert_close(whitening.white(train) @ whitening.white(queries).T, expected)
    torch.testing.assert_close(train @ whitening.solved(queries).T, expected)


def test_without_queries_or_without_whitening_there_is_no_mixture() -> None:
    train = {name: torch.eye(SIZE, dtype=torch.float64) for name in BLOCKS}
    assert make_whitening(train, None, WhiteningSettings()).mix == 0
    assert make_whitening(train, train, WhiteningSettings("train")).mix == 0
    plain = make_whitening(train, train, WhiteningSettings("none"))
    rows = torch.randn(2, 2 * SIZE)
    assert plain.white(rows) is plain.solved(rows) is rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"autocorrelation": "queries"}, "autocorrelation: expected one of"),
        ({"mix": 1.5}, "mix: expected 0 to 1"),
        ({"autocorrelation": "train", "mix": 0.5}, "with autocorrelation=mixed alone"),
        ({"rank_share": 0.0}, "rank_share"),
        ({"damping": 0.0}, "damping"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WhiteningSettings(**options)


def test_a_mixture_needs_queries() -> None:
    train = {name: torch.eye(SIZE, dtype=torch.float64) for name in BLOCKS}
    with pytest.raises(ValueError, match="expected queries of the task"):
        make_whitening(train, None, WhiteningSettings(mix=0.5))

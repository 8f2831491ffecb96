"""Products of rows with rows equal plain matrix products, by whichever library they are taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ftrace.gradients import row_products
from ftrace.gradients.row_products import onednn_is_faster, products_of_rows, stacked_products_of_rows

SHAPES = [(1, 1, 1), (3, 5, 7), (32, 64, 4096), (64, 8, 1000), (0, 4, 8), (4, 4, 0)]


@pytest.fixture(params=[True, False], ids=["oneDNN", "mm"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_products, "onednn_is_faster", lambda threads: request.param)


def _expected(first: Tensor, second: Tensor) -> Tensor:
    return first.double() @ second.double().T


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(("M", "N", "P"), SHAPES)
def test_they_equal_float64(M: int, N: int, P: int) -> None:
    generator = torch.Generator().manual_seed(M + N + P)
    first, second = (torch.randn(rows, P, generator=generator) for rows in (M, N))
    found = products_of_rows(first, second)
    assert found.shape == (M, N)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), _expected(first, second), rtol=1e-5, atol=1e-5 * max(1, P) ** 0.5)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("large", [1, 2**40])
def test_stacked_ones_are_those_of_each(large: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_products, "_LARGE", large)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, rows, 32, generator=generator, dtype=dtype) for rows in (3, 5))
    found = stacked_products_of_rows(first, second)
    assert found.dtype == dtype
    expected = torch.stack([_expected(a, b) for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_library")
def test_strided_and_transposed_memory_is_read_as_it_is() -> None:
    wide = torch.randn(40, 3000, generator=torch.Generator().manual_seed(0))
    first, second = wide[:, 500:1500], wide.T[:1000].T
    torch.testing.assert_close(products_of_rows(first, second).double(), _expected(first, second), rtol=1e-5, atol=1e-3)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_keep_theirs(dtype: torch.dtype) -> None:
    first = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = products_of_rows(first, first)
    assert found.dtype == dtype
    torch.testing.assert_close(found, first @ first.T)


@pytest.mark.usefixtures("_library")
def test_what_requires_a_gradient_gets_it() -> None:
    first = torch.ones(4, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(products_of_rows(first, torch.ones(2, 8)).sum(), first)
    assert grad.eq(2).all()


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError, TypeError])
def test_a_pytorch_without_that_product_takes_its_own(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(first: Tensor, second: Tensor) -> Tensor:
        raise error("no such product")

    monkeypatch.setattr(row_products, "_by_onednn", fails)
    assert not onednn_is_faster.__wrapped__(1)


def test_a_library_that_computes_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_products, "_by_onednn", lambda first, second: 1.001 * (first @ second.T))
    monkeypatch.setattr(row_products, "_seconds", lambda run: 0.0)
    assert not onednn_is_faster.__wrapped__(1)


def test_it_is_chosen_without_random_numbers() -> None:
    before = torch.get_rng_state()
    onednn_is_faster.__wrapped__(1)
    assert torch.equal(torch.get_rng_state(), before)

"""Any two factored parts: the product from factors equals the product of what they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrace.gradients import per_example
from ftrace.gradients.parts import Dense, Lookup, Outer, merge, stack_examples
from ftrace.gradients.per_example import PerExampleGradients, paired_products
from ftrace.gradients.products import contract, gram

sizes = st.integers(1, 4)


def _part(kind: str, B: int, T: int, R: int, C: int, generator: torch.Generator) -> Outer | Lookup:
    columns = torch.randn(B, T, C, generator=generator, dtype=torch.float64)
    if kind == "outer":
        return Outer(torch.randn(B, T, R, generator=generator, dtype=torch.float64), columns)
    return Lookup(torch.randint(0, R, (B, T), generator=generator), columns, R)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["outer", "lookup"]), st.sampled_from(["outer", "lookup"]), sizes, sizes, sizes, sizes, sizes, sizes
)
def test_gram_equals_dense(first: str, second: str, B: int, Q: int, T: int, S: int, R: int, C: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = _part(first, B, T, R, C, generator), _part(second, Q, S, R, C, generator)
    expected = a.dense().flatten(1) @ b.dense().flatten(1).T
    torch.testing.assert_close(gram(a, b).sum(1), expected)
    torch.testing.assert_close(contract(a, b.dense()).sum(1), expected)
    torch.testing.assert_close(gram(a, b), contract(a, b.dense()))
    c = _part(second, B, S, R, C, generator)
    torch.testing.assert_close(paired_products(a, c), (a.dense() * c.dense()).flatten(1).sum(1))
    weights = torch.randn(B, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(a.weighted_sum(weights), torch.einsum("b,brc->rc", weights, a.dense()))


def test_merging_and_stacking_keep_the_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [_part(kind, 3, T, 4, 2, generator) for kind, T in (("outer", 2), ("lookup", 5), ("outer", 1))]
    dense = Dense(torch.randn(3, 4, 2, generator=generator, dtype=torch.float64))
    merged = merge([dense, *parts])
    assert [type(part) for part in merged] == [Outer, Lookup, Dense]
    total = sum(part.dense() for part in [dense, *parts])
    torch.testing.assert_close(sum(part.dense() for part in merged), total)
    stacked = stack_examples([parts[0], None, parts[2]], [3, 2, 3])
    torch.testing.assert_close(
        stacked.dense(), torch.cat([parts[0].dense(), parts[0].dense()[:2] * 0, parts[2].dense()])
    )


@given(st.sampled_from(["outer", "lookup"]), sizes, sizes, sizes, sizes, st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_products_with_one_vector_are_those_of_the_dense_gradients(
    kind: str, B: int, T: int, R: int, C: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    part = _part(kind, B, T, R, C, generator)
    vector = torch.randn(R, C, generator=generator, dtype=torch.float64)
    expected = part.dense().flatten(1) @ vector.flatten()
    torch.testing.assert_close(part.along(vector), expected)
    torch.testing.assert_close(Dense(part.dense()).along(vector), expected)


@pytest.mark.parametrize("formed", [2 * 4 * 3, 3 * 3, 1], ids=["two examples", "three rows", "one row"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kinds", [("outer",), ("lookup",), ("outer", "lookup"), ("dense",), ("outer", "dense")])
def test_products_with_several_vectors_are_those_with_each(
    kinds: tuple[str, ...], count: int, formed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_example, "_FORMED_BYTES", 8 * formed)  # at a time
    generator = torch.Generator().manual_seed(0)
    parts = [
        Dense(torch.randn(5, 4, 3, generator=generator, dtype=torch.float64))
        if kind == "dense"
        else _part(kind, 5, 2, 4, 3, generator)
        for kind in kinds
    ]
    scale = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    vectors = list(torch.randn(count, 4, 3, generator=generator, dtype=torch.float64))
    gradients = PerExampleGradients({"w": parts}, {"w": torch.Size([4, 3])}, 5, scales={"w": scale})
    expected = torch.einsum("brc,rc,vrc->vb", sum(part.dense() for part in parts), scale, torch.stack(vectors))
    torch.testing.assert_close(gradients.along_each("w", vectors), expected)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 3, 2)])
def test_products_with_vectors_of_any_shape(shape: tuple[int, ...]) -> None:
    gradients = PerExampleGradients({"w": [Dense(torch.randn(5, *shape))]}, {"w": torch.Size(shape)}, 5)
    vectors = list(torch.randn(2, *shape))
    expected = torch.stack([gradients.along("w", vector) for vector in vectors])
    torch.testing.assert_close(gradients.along_each("w", vectors), expected)


def test_products_with_vectors_hold_a_few_rows_of_a_large_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not all of them once more, of each vector."""
    monkeypatch.setattr(per_example, "_FORMED_BYTES", 8 * 10 * 3)  # ten rows
    sizes: list[int] = []
    dense = PerExampleGradients.dense

    def measured(*args: Any, **kwargs: Any) -> torch.Tensor:
        formed = dense(*args, **kwargs)
        sizes.append(formed.numel())
        return formed

    monkeypatch.setattr(PerExampleGradients, "dense", measured)
    generator = torch.Generator().manual_seed(0)
    parts = [_part("outer", 5, 2, 25, 3, generator), _part("lookup", 5, 2, 25, 3, generator)]
    gradients = PerExampleGradients({"w": parts}, {"w": torch.Size([25, 3])}, 5)
    vectors = list(torch.randn(3, 25, 3, generator=generator, dtype=torch.float64))
    expected = torch.stack([gradients.along("w", vector) for vector in vectors])
    torch.testing.assert_close(gradients.along_each("w", vectors), expected)
    assert max(sizes) <= 10 * 3

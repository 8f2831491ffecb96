"""Products and norms: the same in every way that they can be taken, within any memory."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ftrace.gradients import (
    Dense,
    GradientCapture,
    Lookup,
    Outer,
    PerExampleGradients,
    Projection,
    QueryGradients,
    Rates,
    find_coverage,
    inner_products,
    inner_products_and_square_norms,
    measured_rates,
    project,
)
from ftrace.gradients.costs import Shape, Way
from ftrace.gradients.product_plans import WAYS, PlanOptions, plan_parameter
from ftrace.gradients.products import tall_product
from helpers import oracle, tiny

RATES = Rates(matmul=1e11, memory=1e10, gather=5e9, call=1e-6)
sizes = st.integers(1, 4)


def _gradients(kind: str, model: nn.Module, batch: dict[str, Tensor]) -> PerExampleGradients:
    with GradientCapture(model) as capture, capture.recording(len(batch["labels"])) as recording:
        recording.backward(tiny.losses(model, batch))
    return recording.gradients()


@cache
def _with_oracle(kind: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    """A model, examples, queries, and the gradients of both by plain autograd."""
    model = tiny.LANGUAGE_MODELS[kind]().eval()
    examples, queries = tiny.batch(kind, 5), tiny.batch(kind, 4, seed=1, length=6)
    exact = [
        oracle.matrix(oracle.gradients(model, lambda b=batch: tiny.losses(model, b))) for batch in (examples, queries)
    ]
    return model, examples, queries, exact[0], exact[1]


@pytest.mark.parametrize("memory_budget", [1, 20_000, 2**30])
@pytest.mark.parametrize("way", [None, *WAYS])
@pytest.mark.parametrize("kind", tiny.LANGUAGE_MODELS)
def test_products_and_norms_equal_autograd_in_every_way(kind: str, way: Way | None, memory_budget: int) -> None:
    if kind == "lora" and way == "gram":
        pytest.skip("adapters of an embedding have no factors: the fallback covers them")
    model, examples, queries, expected_examples, expected_queries = _with_oracle(kind)
    prepared = QueryGradients(_gradients(kind, model, queries), way, memory_budget)
    names = find_coverage(model).covered
    expected = expected_examples @ expected_queries.T
    assert oracle.relative_error(prepared.norms(names), expected_queries.norm(dim=1)) < 1e-9
    for _ in range(2):  # the second time with what was kept from the first
        found = _gradients(kind, model, examples)
        inner, square_norms = inner_products_and_square_norms(found, prepared, names)
        assert oracle.relative_error(inner, expected) < 1e-9
        assert oracle.relative_error(inner_products(found, prepared, names), expected) < 1e-9
        assert oracle.relative_error(square_norms, expected_examples.square().sum(1)) < 1e-9
    assert oracle.relative_error(prepared.norms(names), expected_queries.norm(dim=1)) < 1e-9


def _side(
    generator: torch.Generator, kinds: list[str], B: int, R: int, C: int, positions: list[int]
) -> PerExampleGradients:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts: list[Outer | Lookup | Dense] = []
    for kind, T in zip(kinds, positions, strict=False):
        if kind == "outer":
            parts.append(Outer(random(B, T, R), random(B, T, C)))
        elif kind == "lookup":
            parts.append(Lookup(torch.randint(0, R, (B, T), generator=generator), random(B, T, C), R))
        else:
            parts.append(Dense(random(B, R, C)))
    return PerExampleGradients({"w": parts}, {"w": torch.Size([R, C])}, B)


KINDS = st.lists(st.sampled_from(["outer", "lookup", "dense"]), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    KINDS, KINDS, sizes, sizes, sizes, sizes, st.lists(sizes, min_size=3, max_size=3), st.sampled_from([1, 100, 9999])
)
def test_four_products_agree(
    first: list[str], second: list[str], B: int, Q: int, R: int, C: int, positions: list[int], budget: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    examples = _side(generator, first, B, R, C, positions)
    queries = _side(generator, second, Q, R, C, positions[::-1])
    expected = examples.dense("w").flatten(1) @ queries.dense("w").flatten(1).T
    norms = examples.dense("w").flatten(1).square().sum(1)
    for way in (None, *WAYS):
        prepared = QueryGradients(_side_again(queries), way, budget, rates=RATES)
        if way == "gram" and "dense" in second and set(first) != {"dense"}:
            with pytest.raises(ValueError, match="way='gram' is not possible for 'w'"):
                inner_products(examples, prepared, ["w"])
            continue
        inner, square_norms = inner_products_and_square_norms(examples, prepared, ["w"])
        torch.testing.assert_close(inner, expected)
        torch.testing.assert_close(square_norms, norms)
    projection = Projection(8)  # more than any axis: loses nothing
    found = inner_products(project(examples, projection), QueryGradients(project(queries, projection)), ["w"])
    torch.testing.assert_close(found, expected)


def _side_again(gradients: PerExampleGradients) -> PerExampleGradients:
    return PerExampleGradients(
        {name: list(of) for name, of in gradients.parts.items()}, gradients.shapes, len(gradients)
    )


def test_one_query_side_serves_batches_of_any_shape_and_refreshes() -> None:
    model = tiny.gpt2().eval()
    names = find_coverage(model).covered
    prepared: QueryGradients | None = None
    for refresh, query_rows in enumerate((4, 4, 6)):
        queries = tiny.batch("gpt2", query_rows, seed=refresh, length=5 + refresh)
        columns = oracle.matrix(oracle.gradients(model, lambda b=queries: tiny.losses(model, b)))
        if prepared is None:
            prepared = QueryGradients(_gradients("gpt2", model, queries))
        else:
            prepared.replace(_gradients("gpt2", model, queries))
        for rows, length in ((1, 4), (5, 8), (2, 3)):
            batch = tiny.batch("gpt2", rows, seed=7, length=length)
            expected = oracle.matrix(oracle.gradients(model, lambda b=batch: tiny.losses(model, b))) @ columns.T
            found = inner_products(_gradients("gpt2", model, batch), prepared, names)
            assert oracle.relative_error(found, expected) < 1e-9


def test_a_refresh_may_come_in_another_precision() -> None:
    batch = tiny.batch("gpt2", 4)
    prepared = QueryGradients(_gradients("gpt2", tiny.gpt2(torch.float32).eval(), batch), "materialised")
    inner_products(_gradients("gpt2", tiny.gpt2(torch.float32).eval(), batch), prepared, ["transformer.wte.weight"])
    found = _gradients("gpt2", tiny.gpt2().eval(), batch)
    prepared.replace(_gradients("gpt2", tiny.gpt2().eval(), batch))
    dense = found.dense("transformer.wte.weight").flatten(1)
    products = inner_products(found, prepared, ["transformer.wte.weight"])
    torch.testing.assert_close(products, dense @ dense.T, rtol=1e-9, atol=1e-9)


def test_the_plan_can_be_read_and_forced() -> None:
    model = tiny.gpt2().eval()
    examples = _gradients("gpt2", model, tiny.batch("gpt2", 5))
    text = str(QueryGradients(_gradients("gpt2", model, tiny.batch("gpt2", 4)), rates=RATES).plan(examples))
    line = next(line for line in text.splitlines() if line.startswith("transformer.wte.weight"))
    assert "outer of 7 + lookup of 7" in line
    assert line.endswith("ms")
    assert "joined" in next(line for line in text.splitlines() if line.startswith("transformer.ln_f.bias"))
    for way in WAYS:
        forced = QueryGradients(_gradients("gpt2", model, tiny.batch("gpt2", 4)), way)
        ways = {way for line in forced.plan(examples).lines for way in line.ways}
        assert ways == {way, "joined"}
    with pytest.raises(ValueError, match=r"way: expected one of \['gram', 'materialised', 'contraction'\] or None"):
        QueryGradients(examples, "ghost")  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_the_plan_reserves_memory_for_what_it_keeps(kept: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def gradients(count: int) -> PerExampleGradients:
        sides = [_side(generator, ["outer"], count, 3, 4, [2]) for _ in range(3)]
        parts = {f"w{number}": list(side.parts["w"]) for number, side in enumerate(sides)}
        return PerExampleGradients(parts, dict.fromkeys(parts, torch.Size([3, 4])), count)

    examples, queries = gradients(5), gradients(2)
    expected = sum(examples.dense(name).flatten(1) @ queries.dense(name).flatten(1).T for name in examples.parts)
    bytes_each = 2 * 12 * 8  # two queries, twelve elements, eight bytes
    prepared = QueryGradients(queries, "materialised", memory_budget=(bytes_each * kept + 9) * 8 // 7, rates=RATES)
    plan = prepared.plan(examples)
    assert [line.keeps_dense for line in plan.lines] == [number < kept for number in range(3)]
    assert str(prepared.plan(examples)) == str(plan)  # looking changes nothing
    torch.testing.assert_close(inner_products(examples, prepared, list(examples.parts)), expected)
    made_dense = [name for name, parts in prepared.gradients.parts.items() if isinstance(parts[0], Dense)]
    assert made_dense == [line.parameter for line in plan.lines if line.keeps_dense]


def test_an_impossible_way_is_refused_before_anything_is_multiplied() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (_side(generator, kinds, 2, 3, 4, [2, 2]).parts["w"] for kinds in (["outer"], ["dense"]))
    shapes = dict.fromkeys(("a", "b"), torch.Size([3, 4]))
    examples = PerExampleGradients({"a": list(first), "b": list(first)}, shapes, 2)
    prepared = QueryGradients(PerExampleGradients({"a": list(first), "b": list(second)}, shapes, 2), "gram")
    with pytest.raises(ValueError, match="way='gram' is not possible for 'b'"):
        prepared.plan(examples)


@pytest.mark.parametrize(
    ("queries", "positions", "expected"),
    [(1, 1, "gram"), (64, 64, "materialised")],
)
def test_few_queries_call_for_gram_many_for_dense(queries: int, positions: int, expected: Way) -> None:
    shape = Shape(8, queries, 768, 768, (("outer", 64),), (("outer", positions),))
    assert plan_parameter("w", shape, PlanOptions(RATES, batches=10)).ways == (expected,)


def test_a_large_table_is_looked_up_on_the_query_side() -> None:
    shape = Shape(8, 64, 50_000, 256, (("lookup", 64),), (("outer", 64), ("lookup", 64)))
    assert plan_parameter("w", shape, PlanOptions(RATES, batches=1000)).ways == ("contraction",)


def test_rates_are_measured_without_random_numbers() -> None:
    measured_rates.cache_clear()
    state = torch.get_rng_state()
    rates = measured_rates(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert rates.matmul > 1e8
    assert rates.memory > 1e7
    assert rates.gather > 1e6
    assert 0 < rates.call < 1e-2
    assert measured_rates(torch.device("cpu"), torch.float32) is rates


@pytest.mark.parametrize(("B", "Q", "P"), [(3, 2, 2**16), (3, 20, 2**16), (3, 2, 100)])
def test_products_of_long_rows(B: int, Q: int, P: int) -> None:
    rows, columns = torch.randn(B, P, dtype=torch.float64), torch.randn(Q, P, dtype=torch.float64)
    torch.testing.assert_close(tall_product(rows, columns), rows @ columns.T, rtol=1e-9, atol=1e-9)

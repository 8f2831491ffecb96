"""Random projection: right in expectation, the closer the larger, and the same whoever uses a parameter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ftrace.gradients import (
    ENTRIES,
    OLD_ENTRIES,
    Elementwise,
    Entries,
    GradientCapture,
    PerExampleGradients,
    Projection,
    QueryGradients,
    RankOne,
    inner_products,
    pool,
    precondition,
    project,
    rank_one,
)
from helpers import oracle, tiny


def _gradients(
    model: nn.Module, kind: str, batch: dict[str, Tensor], projection: Projection | None = None
) -> PerExampleGradients:
    with (
        GradientCapture(model, projection=projection) as capture,
        capture.recording(len(batch["labels"])) as recording,
    ):
        recording.backward(tiny.losses(model, batch))
    return recording.gradients()


def _products(examples: PerExampleGradients, queries: PerExampleGradients) -> Tensor:
    return inner_products(examples, QueryGradients(queries), list(examples.parts))


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_projected_while_recording_equals_projected_afterwards(kind: str) -> None:
    model, batch = tiny.MODELS[kind]().eval(), tiny.batch(kind, 5)
    projection = Projection(3, seed=4)
    recorded = _gradients(model, kind, batch, projection)
    whole = _gradients(model, kind, batch)
    afterwards = project(whole, projection)
    assert recorded.parts.keys() == afterwards.parts.keys() == {name for name, _ in model.named_parameters()}
    for name in recorded.parts:
        expected = projection.project(name, whole.dense(name))
        torch.testing.assert_close(recorded.dense(name), expected, rtol=1e-9, atol=1e-12, msg=name)
        torch.testing.assert_close(afterwards.dense(name), expected, rtol=1e-9, atol=1e-12, msg=name)
        assert recorded.shapes[name] == expected.shape[1:]


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_enough_directions_lose_nothing(kind: str) -> None:
    model = tiny.MODELS[kind]().eval()
    examples, queries = tiny.batch(kind, 5), tiny.batch(kind, 4, seed=1)
    expected = _products(_gradients(model, kind, examples), _gradients(model, kind, queries))
    projection = Projection(48)  # no axis is longer
    found = _products(_gradients(model, kind, examples, projection), _gradients(model, kind, queries, projection))
    assert oracle.relative_error(found, expected) < 1e-9


def _errors(side: int, draws: int, shape: tuple[int, ...]) -> Tensor:
    """Relative errors of the product of two gradients of a parameter, over random directions."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    second = first + torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    errors = []
    for seed in range(draws):
        projection = Projection(side, seed)
        found = (projection.project("w", first) * projection.project("w", second)).sum()
        errors.append((found - (first * second).sum()) / (first.norm() * second.norm()))
    return torch.stack(errors)


@pytest.mark.parametrize("shape", [(40, 30), (12, 5, 6), (900,)], ids=str)
def test_unbiased_and_error_falls_as_one_over_k(shape: tuple[int, ...]) -> None:
    spread = {}
    for side in (4, 8, 16):
        errors = _errors(side, 400, shape)
        spread[side] = float(errors.std())
        assert abs(float(errors.mean())) < 4 * spread[side] / 400**0.5
    if shape != (12, 5, 6):  # whose rows fit from K = 12 on
        assert spread[4] / spread[8] == pytest.approx(2, rel=0.2)
        assert spread[8] / spread[16] == pytest.approx(2, rel=0.2)


def test_of_a_single_outer_product_the_square_error_falls_as_one_over_k() -> None:
    """The hardest case: a gradient of rank one, where both sides' errors multiply one number."""
    generator = torch.Generator().manual_seed(0)
    row, column = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (60, 50))
    gradient = torch.outer(row, column)[None]
    spread = {}
    for side in (8, 16, 32):
        found = torch.stack([Projection(side, s).project("w", gradient).square().sum() for s in range(600)])
        errors = found / gradient.square().sum() - 1
        spread[side] = float(errors.std())
        assert abs(float(errors.mean())) < 4 * spread[side] / 600**0.5
    assert spread[8] ** 2 / spread[32] ** 2 == pytest.approx(4, rel=0.35)


class Tied(nn.Module):
    """A table that is an embedding, a head, or Hugging Face's transposed layer."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        torch.manual_seed(0)
        table = nn.Parameter(torch.randn(11, 6, dtype=torch.float64))
        self.weights = nn.Module()
        if use == "embedding":
            self.weights = nn.Embedding(11, 6)
        else:
            self.weights = nn.Linear(6, 11, bias=False)
        self.weights.weight = table


def test_the_same_for_a_tied_weight_through_either_module() -> None:
    """One-hot rows through a linear layer are a lookup: with the same output gradient, the same projected gradient."""
    projection = Projection(3, seed=1)
    ids = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(0))
    target = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    embedding = Tied("embedding")
    with (
        GradientCapture(embedding, projection=projection) as capture,
        capture.recording(4) as recording,
    ):
        recording.backward((embedding.weights(ids) * target).flatten(1).sum(1))
    through_embedding = recording.gradients()

    head = Tied("head")  # loss sum_t onehot_t^T W target_t: features are the targets, output gradients the one-hots
    onehot = torch.nn.functional.one_hot(ids, 11).double()
    with GradientCapture(head, projection=projection) as capture, capture.recording(4) as recording:
        recording.backward((head.weights(target) * onehot).flatten(1).sum(1))
    through_head = recording.gradients()
    torch.testing.assert_close(
        through_embedding.dense("weights.weight"), through_head.dense("weights.weight"), rtol=1e-9, atol=1e-12
    )


def test_directions_depend_on_seed_and_name_only() -> None:
    gradient = torch.randn(2, 30, 20)
    state = torch.get_rng_state()
    once = Projection(4, seed=1).project("a.weight", gradient)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(once, Projection(4, seed=1).project("a.weight", gradient))
    assert not torch.equal(once, Projection(4, seed=2).project("a.weight", gradient))
    assert not torch.equal(once, Projection(4, seed=1).project("b.weight", gradient))
    with pytest.raises(ValueError, match="side: expected 1 to 4,096, found 0"):
        Projection(0)


@pytest.mark.parametrize("shape", [(), (7,), (300,), (6, 5), (4, 3, 2)], ids=str)
def test_unproject_is_the_transpose(shape: tuple[int, ...]) -> None:
    projection = Projection(4)
    gradient = torch.randn(shape, dtype=torch.float64)
    direction = torch.randn(projection.shape(shape), dtype=torch.float64)
    projected = (projection.project("w", gradient[None])[0] * direction).sum()
    torch.testing.assert_close((projection.unproject("w", direction, shape) * gradient).sum(), projected)


def test_blocks_are_sums_of_their_members() -> None:
    model, batch = tiny.gpt2().eval(), tiny.batch("gpt2", 5)
    found = _gradients(model, "gpt2", batch, Projection(3))
    attention = [name for name in found.parts if "attn" in name and name.endswith("weight")]
    pooled = pool(found, {"attention": attention})
    assert list(pooled.parts) == ["attention"]
    torch.testing.assert_close(pooled.dense("attention"), sum(found.dense(name) for name in attention))


def test_products_of_blocks_are_right_in_expectation() -> None:
    model, batch = tiny.gpt2().eval(), tiny.batch("gpt2", 3)
    whole = _gradients(model, "gpt2", batch)
    names = [name for name in whole.parts if ".h." in name and name.endswith("weight") and "ln" not in name]
    expected = sum(whole.dense(name).flatten(1) @ whole.dense(name).flatten(1).T for name in names)
    draws = []
    for seed in range(300):
        block = pool(project(whole, Projection(4, seed)), {"all": names}).dense("all").flatten(1)
        draws.append(block @ block.T)
    found = torch.stack(draws)
    assert ((found.mean(0) - expected).abs() < 5 * found.std(0) / 300**0.5).all()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"a": ["nothing"]}, r"expected parameters that have a gradient, found \['nothing'\]"),
        ({"a": ["lm.weight"], "b": ["lm.weight"]}, "each parameter in one block at most"),
        ({"a": ["lm.weight", "lm.bias"]}, "expected projected gradients of one shape in 'a', found"),
    ],
)
def test_bad_blocks_are_named(blocks: dict[str, list[str]], message: str) -> None:
    model = nn.ModuleDict({"lm": nn.Linear(5, 6)})
    with GradientCapture(model, projection=Projection(2)) as capture, capture.recording(3) as recording:
        recording.backward(model["lm"](torch.randn(3, 5)).sum(1))
    with pytest.raises(ValueError, match=message):
        pool(recording.gradients(), blocks)


def test_preconditioned_then_projected() -> None:
    model, batch = tiny.gpt2().eval(), tiny.batch("gpt2", 4)
    projection = Projection(3)
    generator = torch.Generator().manual_seed(0)
    scales = {
        name: Elementwise(torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.5)
        for name, p in model.named_parameters()
    }
    whole = _gradients(model, "gpt2", batch)
    found = project(precondition(whole, scales), projection)
    for name in found.parts:
        expected = projection.project(name, whole.dense(name) * scales[name].scale)
        torch.testing.assert_close(found.dense(name), expected, rtol=1e-9, atol=1e-12, msg=name)


def test_a_rank_one_preconditioner_folds_into_the_projection() -> None:
    model, batch = tiny.gpt2().eval(), tiny.batch("gpt2", 4)
    generator = torch.Generator().manual_seed(0)
    scales = {}
    for name, p in model.named_parameters():
        scale = Elementwise(torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.5)
        scales[name] = rank_one(scale)[0] if p.ndim > 1 else scale
    folded = Projection(3, seed=2).preconditioned(scales)
    recorded = _gradients(model, "gpt2", batch, folded)
    expected = project(precondition(_gradients(model, "gpt2", batch), scales), Projection(3, seed=2))
    for name in recorded.parts:
        torch.testing.assert_close(recorded.dense(name), expected.dense(name), rtol=1e-9, atol=1e-12, msg=name)
    with pytest.raises(ValueError, match=r"an elementwise preconditioner of a matrix \('w'\) can't be folded"):
        Projection(3).preconditioned({"w": Elementwise(torch.ones(2, 2))})


def test_preconditioners_of_a_projection_add_up() -> None:
    first, second = torch.rand(5) + 0.5, torch.rand(4) + 0.5
    twice = Projection(2).preconditioned({"w": RankOne(first, second)}).preconditioned({"w": RankOne(first, second)})
    once = Projection(2).preconditioned({"w": RankOne(first.square(), second.square())})
    gradient = torch.randn(3, 5, 4)
    torch.testing.assert_close(twice.project("w", gradient), once.project("w", gradient))


def test_rademacher_entries_keep_products_in_expectation_and_vary_less() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 40, 30, generator=generator, dtype=torch.float64)

    def product(entries: str, seed: int) -> torch.Tensor:
        projection = Projection(8, seed, entries)  # type: ignore[arg-type]
        return (projection.project("w", a[None]) * projection.project("w", b[None])).sum()

    found = {entries: torch.stack([product(entries, n) for n in range(400)]) for entries in ENTRIES}
    for products in found.values():
        assert abs(float(products.mean() - (a * b).sum())) < 4 * float(products.std()) / 20
    assert found["rademacher"].std() < found["gaussian"].std()
    directions = Projection(8, 0, "rademacher").axis("w", 0, 40, a)
    assert set(directions.mul(8**0.5).round(decimals=9).unique().tolist()) == {-1, 1}
    with pytest.raises(ValueError, match="entries"):
        Projection(8, 0, "uniform")  # type: ignore[arg-type]


@pytest.mark.parametrize(("old", "new"), OLD_ENTRIES.items())
def test_old_names_of_entries_draw_the_same_directions(old: Entries, new: Entries) -> None:
    with pytest.warns(FutureWarning, match=f"entries: {old} is now called {new}"):
        projection = Projection(8, 0, old)
    like = torch.zeros(())
    assert torch.equal(projection.axis("w", 0, 40, like), Projection(8, 0, new).axis("w", 0, 40, like))

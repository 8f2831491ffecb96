"""Query gradients that only whitening needs unprojected are projected batch by batch."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn, Whitening
from ftrace.gradients import Outer, PerExampleGradients, Projection, RankOne
from ftrace.online.queries.answers import AnswerKeeper
from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.online.scoring.rules import ScoringRules
from ftrace.online.scoring.scoring import Scoring
from ftrace.online.scoring.whitened import QueryReduction, WhitenedProducts
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer


def factors() -> int:
    return sum(type(value) is Outer for value in gc.get_objects())


def held(folder: Path, **options: Any) -> list[int]:
    """Count the factors that are held whenever a batch of queries begins."""
    gc.collect()
    before = factors()  # what other tests have left
    counts: list[int] = []  # not the module's own, which is as before after each pass
    ids: list[list[int]] = [[]]

    class Counting(replay.Net):
        def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
            if "query_id" in batch and batch["query_id"].tolist() != ids[-1]:  # the check asks the first batch again
                ids.append(batch["query_id"].tolist())
                counts.append(factors() - before)
            return super().example_losses(batch)

    queries = DataLoader(replay.rows(6, "query_id", seed=1), batch_size=2)  # type: ignore[arg-type]
    online = OnlineTracIn(queries, folder / "online", projection_side=2, refresh_every_n_steps=2, **options)
    examples = DataLoader(replay.rows(8, "example_id"), batch_size=2)  # type: ignore[arg-type]
    trainer(folder, callbacks=[online], max_epochs=1).fit(Counting(OPTIMIZERS["adamw"]), examples)
    return counts


def test_no_batch_of_queries_stays_unprojected(tmp_path: Path) -> None:
    reduced = held(tmp_path / "learning", scores=("learning",))
    assert len(reduced) == 9  # three batches at steps 0, 2 and the end
    assert max(reduced) == 0
    assert max(held(tmp_path / "update", scores=("learning", "update"))) > 0  # which needs them unprojected


SHAPES = {"a": torch.Size([5, 4]), "b": torch.Size([3, 4])}
DIVIDED = {"a": RankOne(torch.linspace(1, 2, 5).double(), torch.linspace(1, 3, 4).double())}


def gradients(rows: int, positions: int, names: str) -> PerExampleGradients:
    def made(name: str) -> list[Any]:
        return [Outer(*(torch.randn(rows, positions, size, dtype=torch.float64) for size in SHAPES[name]))]

    return PerExampleGradients({name: made(name) for name in names}, SHAPES, rows)


def test_batch_by_batch_is_all_at_once() -> None:
    torch.manual_seed(0)
    whitened = WhitenedProducts(Whitening(), Projection(2), list("ab"), divides=True, by_layer=False)
    whitened.precondition_with(DIVIDED)
    batches = [gradients(2, 3, "ab"), gradients(1, 5, "a")]  # the second batch has no gradient for b
    reduction = QueryReduction(whitened)
    projected = PerExampleGradients.stack([reduction(batch) for batch in batches])
    at_once = QueryReduction(whitened)
    expected = at_once(PerExampleGradients.stack(batches))
    for name in "ab":
        torch.testing.assert_close(projected.dense(name), expected.dense(name), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(reduction.divided.dense(name), at_once.divided.dense(name), rtol=1e-12, atol=1e-14)
    assert not torch.allclose(projected.dense("a"), reduction.divided.dense("a"))


def test_a_state_of_an_earlier_version_has_unprojected_queries() -> None:
    torch.manual_seed(0)
    queries, losses = gradients(3, 2, "ab"), torch.ones(3, dtype=torch.float64)

    def scoring() -> Scoring:
        rules = ScoringRules(("dot", "learning"), projection=Projection(2))
        sums = ScoreAccumulator(rules.kinds, [1, 2, 3], torch.float64)
        return Scoring(rules, sums, list("ab"), 1, AnswerKeeper(), divides=True)

    fresh = scoring()
    assert fresh.whitened is not None
    fresh.whitened.precondition_with(DIVIDED)
    reduction = fresh.query_reduction()
    assert reduction is not None
    fresh.refresh(reduction(queries), losses, divided=reduction.divided)
    earlier = scoring()
    state = {**fresh.state(), "whitened_queries": None}
    earlier.load([state], state, queries, losses, None)
    assert earlier.whitened is not None
    assert earlier.directions.unprojected is not None
    for name, whitened in fresh.whitened.queries.items():
        torch.testing.assert_close(earlier.whitened.queries[name], whitened, rtol=1e-12, atol=0)
        projected = earlier.directions.unprojected.dense(name)
        torch.testing.assert_close(projected, reduction(queries).dense(name), rtol=1e-12, atol=0)

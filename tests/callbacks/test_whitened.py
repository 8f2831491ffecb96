"""Whitened scores against the dense formula in float64, one example at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn, Whitening
from ftrace.gradients import Dense, Elementwise, PerExampleGradients, Projection
from ftrace.online.scoring.whitened import WhitenedProducts
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer
from helpers.whitened_formula import SIDE, dense_formula


class Lengthy(replay.Net):
    """Queries have answers of several tokens."""

    def answer_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        return 3 * batch["word"] + 1


@pytest.mark.parametrize("kind", ["whitened", "learning", "learning long answers"])
@pytest.mark.parametrize(("refresh", "accumulate"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize(
    ("optimizer", "divided"),
    [("momentum", "rank-one"), ("adamw", "rank-one"), ("adamw", "elementwise"), ("adamw", "none"),
     ("adafactor", "rank-one"), ("adafactor", "elementwise")],
)  # fmt: skip
def test_whitened_scores_equal_the_dense_formula(
    optimizer: str, divided: Any, refresh: int, accumulate: int, kind: str, tmp_path: Path
) -> None:
    examples, asked = replay.rows(9, "example_id"), replay.rows(3, "query_id", seed=1)
    kind, _, has_lengths = kind.partition(" ")
    module = (Lengthy if has_lengths else replay.Net)(OPTIMIZERS[optimizer])
    by_hand = copy.deepcopy(module)
    whitening = Whitening(window=4, damping=0.2, parameters=("*", "!table.*"), preconditioner=divided)
    online = OnlineTracIn(
        DataLoader(asked, batch_size=2), tmp_path / "online", scores=(kind, "dot"), projection_side=SIDE,
        whitening=whitening, refresh_every_n_steps=refresh, seed=4,
    )  # fmt: skip
    trainer(tmp_path, callbacks=[online], accumulate_grad_batches=accumulate).fit(
        module, DataLoader(examples, batch_size=2)
    )
    batches = [examples[i : i + 2] for i in range(0, 9, 2)]
    windows = [batches[i : i + accumulate] for i in range(0, 5, accumulate)] * 2
    names = [n for n, _ in by_hand.named_parameters() if not n.startswith("table")]
    # Lightning divides by accumulate_grad_batches even in a short last window.
    expected = dense_formula(
        by_hand, windows, asked, refresh=refresh, window=4, damping=0.2, divided=divided, names=names,
        by_learning=kind == "learning", share=1 / accumulate,
    )  # fmt: skip
    store = ScoreStore.open(tmp_path / "online")
    matrix = np.stack([expected[int(example)].numpy() for example in store.example_ids])
    np.testing.assert_allclose(store.matrix(kind), matrix, rtol=1e-7, atol=1e-9)
    assert store.manifest["whitening"]["window"] == 4


def test_layers_add_up_and_unknown_options_are_refused(tmp_path: Path) -> None:
    examples, asked = replay.rows(6, "example_id"), replay.rows(2, "query_id", seed=1)
    online = OnlineTracIn(
        DataLoader(asked, batch_size=2), tmp_path / "online", scores=("whitened", "learning"), projection_side=2,
        breakdown=("layer",), refresh_every_n_steps=1,
)  # fmt: skip
    trainer(tmp_path, callbacks=[online]).fit(replay.Net(OPTIMIZERS["sgd"]), DataLoader(examples, batch_size=2))
    store = ScoreStore.open(tmp_path / "online")
    for kind in store.kinds:
        parts = store.parts(1, "layer", kind)
        assert set(parts) == {"table", "net.0", "net.1", "net.3"}
        np.testing.assert_allclose(sum(parts.values()), store.scores(1, kind), rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: expected at least 1, found 0"),
        ({"damping": 0.0}, "damping: expected a number above 0, found 0.0"),
        ({"preconditioner": "full"}, "preconditioner: expected one of .*'rank-one', .*found 'full'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Whitening(**options)


def test_whitened_scores_need_a_projection_and_parameters_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'learning' whiten projected gradients: expected projection_side=K .*None"):
        OnlineTracIn(scores=("learning",), refresh_every_n_steps=1)
    asked, examples = replay.rows(2, "query_id"), replay.rows(2, "example_id")
    online = OnlineTracIn(
        DataLoader(asked, batch_size=2), tmp_path / "s", scores=("whitened",), projection_side=2,
        whitening=Whitening(parameters=("net.0.weigth",)), refresh_every_n_steps=1,
)  # fmt: skip
    with pytest.raises(ValueError, match=r"whitening: parameters: .*'net.0.weigth' matches no .*'net.0.weight'"):
        trainer(tmp_path, callbacks=[online]).fit(replay.Net(OPTIMIZERS["sgd"]), DataLoader(examples, batch_size=2))


class Twice(replay.Net):
    """Steps by hand, once or twice with one gradient."""

    def __init__(self, steps: int) -> None:
        super().__init__(OPTIMIZERS["sgd"])
        self.automatic_optimization = False
        self.steps = steps

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for _ in range(self.steps):
            optimizer.step()


def test_a_gradient_that_is_used_twice_counts_twice(tmp_path: Path) -> None:
    examples, asked = replay.rows(3, "example_id"), replay.rows(2, "query_id", seed=1)
    found = []
    for steps in (1, 2):
        folder = tmp_path / str(steps)
        online = OnlineTracIn(
            DataLoader(asked, batch_size=2), folder, scores=("whitened",), projection_side=2, refresh_every_n_steps=9
        )  # fmt: skip
        trainer(tmp_path, callbacks=[online], max_epochs=1).fit(Twice(steps), DataLoader(examples, batch_size=3))
        found.append(np.array(ScoreStore.open(folder).matrix("whitened")))
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-9)


def test_a_resumed_run_whitens_parameters_that_it_sees_later() -> None:
    """Those that were unfrozen before it was killed are covered anew only after its state is back."""
    names, side = ["a.weight", "b.weight"], 2
    projection = Projection(side)

    def gradients(seed: int, rows: int) -> PerExampleGradients:
        torch.manual_seed(seed)
        parts: Any = {n: [Dense(torch.randn(rows, side, side, dtype=torch.float64))] for n in names}
        return PerExampleGradients(parts, {n: torch.Size([side, side]) for n in names}, rows)

    def product(seen: list[str]) -> WhitenedProducts:
        return WhitenedProducts(Whitening(), projection, seen, divides=True, by_layer=False)

    whole = product(names)
    whole.precondition_with({n: Elementwise(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()) for n in names[:0]})
    whole.step([whole.rows(whole.divided(gradients(0, 5)), names)], names)
    whole.refresh(gradients(1, 3))
    resumed = product(names[:1])
    resumed.load([whole.state()], whole.state())
    resumed.take_queries(gradients(1, 3))
    resumed.cover(names)
    resumed.take_queries(gradients(1, 3))
    batch = gradients(2, 4)
    [first], [second] = (
        list(one.cosines(one.rows(one.divided(batch), names), names).values()) for one in (whole, resumed)
    )  # fmt: skip
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


def test_what_was_seen_before_second_moments_is_forgotten() -> None:
    whitened = WhitenedProducts(Whitening(), Projection(1), ["a", "b"], divides=True, by_layer=False)
    whitened.step([{"a": torch.full((2, 1), 3.0), "b": torch.full((2, 1), 5.0)}], ["a", "b"])
    whitened.precondition_with({"a": Elementwise(torch.ones(1))})
    assert list(whitened.autocorrelation.sums) == ["b"]
    whitened.step([{"a": torch.full((2, 1), 1.0)}], ["a"])
    whitened.precondition_with({"a": Elementwise(2 * torch.ones(1))})
    assert float(whitened.autocorrelation.mean("a")) == 1.0

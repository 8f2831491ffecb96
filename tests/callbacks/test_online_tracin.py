"""OnlineTracIn against a loop of plain autograd, in training runs as people have them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.gradients import Projection
from ftrace.scores import ScoreStore
from helpers import oracle, tiny
from helpers.language_runs import Module, fit, queries, rows, weights


def replay(
    module: Module, batches: list[list[dict[str, Any]]], query_rows: list[dict[str, Any]], *, accumulate: int,
    refresh: int, clip: float | None, epochs: int,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:  # fmt: skip
    """The definition, step by step and example by example, for every parameter: dot and cosine by example id."""
    kind = "t5" if module.model.config.is_encoder_decoder else "gpt2"
    named = dict(module.named_parameters())
    (optimizer,), (schedule,) = module.configure_optimizers()
    rate_of = {
        name: next(i for i, group in enumerate(optimizer.param_groups) if any(p is q for q in group["params"]))
        for name, p in named.items()
    }
    collate = torch.utils.data.default_collate
    dot: dict[int, Tensor] = {}
    cosine: dict[int, Tensor] = {}
    step = 0
    for _ in range(epochs):
        windows = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
        for window in windows:
            if step % refresh == 0:
                module.eval()
                query_gradients = oracle.gradients(module, lambda: tiny.losses(module.model, collate(query_rows)))
                module.train()
            contributions: list[tuple[int, dict[str, Tensor]]] = []
            for batch in window:
                collated = collate(batch)
                shifted = collated["labels"][:, 1:] if kind == "gpt2" else collated["labels"]
                tokens = (shifted != -100).sum()
                own = oracle.gradients(
                    module, lambda b=collated, n=tokens: tiny.losses(module.model, b) / n / accumulate
                )
                contributions += zip((row["example_id"] for row in batch), own, strict=True)
            total = {name: torch.stack([own[name] for _, own in contributions]).sum(0) for name in named}
            norm = oracle.flat(total).norm()
            kappa = min(1.0, clip / (float(norm) + 1e-6)) if clip else 1.0
            for example, own in contributions:
                rate = {name: optimizer.param_groups[group]["lr"] for name, group in rate_of.items()}
                weighted = oracle.flat({name: rate[name] * kappa * own[name] for name in named})
                plain = oracle.flat(own)
                scores = torch.stack([weighted @ oracle.flat(q) for q in query_gradients])
                cosines = torch.stack(
                    [plain @ oracle.flat(q) / plain.norm() / oracle.flat(q).norm() for q in query_gradients]
                )
                dot[example] = dot.get(example, 0) + scores
                cosine[example] = cosine.get(example, 0) + cosines
            for name, parameter in named.items():
                parameter.grad = kappa * total[name]
            optimizer.step()
            schedule["scheduler"].step()
            step += 1
    return dot, cosine


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("kind", tiny.MODELS)
def test_scores_equal_a_loop_of_plain_autograd(kind: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    """Several steps, accumulation with a short last window, clipping, momentum, two groups, a schedule, old queries."""
    module = Module(kind, dtype, groups=True)
    exact = copy.deepcopy(module).double()
    examples, asked = rows(kind, 14), rows(kind, 5, seed=1, key="query_id", length=6)
    callback = OnlineTracIn(queries(kind), tmp_path / "online", scores=("dot", "cosine"), refresh_every_n_steps=2)
    loader = DataLoader(examples, batch_size=3)  # 5 batches, in windows of 2, 2 and 1
    fit(module, loader, tmp_path, [callback], accumulate_grad_batches=2, gradient_clip_val=0.5)

    batches = [examples[i : i + 3] for i in range(0, len(examples), 3)]
    dot, cosine = replay(exact, batches, asked, accumulate=2, refresh=2, clip=0.5, epochs=2)
    assert oracle.relative_error(weights(module).double(), weights(exact)) < tolerance
    store = ScoreStore.open(tmp_path / "online")
    assert store.example_ids.tolist() == sorted(dot)
    assert store.query_ids.tolist() == [row["query_id"] for row in asked]
    for name, expected in (("dot", dot), ("cosine", cosine)):
        matrix = torch.stack([expected[example] for example in sorted(expected)])
        assert store.matrix(name).dtype == (np.float64 if dtype is torch.float64 else np.float32)
        assert oracle.relative_error(torch.from_numpy(np.array(store.matrix(name))).double(), matrix) < tolerance


def test_works_in_a_module_that_knows_nothing_of_ftrace(tmp_path: Path) -> None:
    """A regression in the user's own style: own loss, own batch keys, losses of queries given by hand."""

    class Regression(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 1)).double()

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return nn.functional.huber_loss(self.net(batch["x"]).squeeze(1), batch["y"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    data = [{"x": torch.randn(4).double(), "y": torch.randn(()).double(), "row": i} for i in range(6)]
    asked = [{"x": torch.randn(4).double(), "y": torch.randn(()).double(), "q": 100 + i} for i in range(3)]

    def squared_error(module: pl.LightningModule, batch: dict[str, Tensor]) -> Tensor:
        return (module.net(batch["x"]).squeeze(1) - batch["y"]).square()

    module = Regression()
    start = copy.deepcopy(module)
    callback = OnlineTracIn(
        asked, tmp_path / "online", squared_error, id_key="row", query_id_key="q", refresh_every_n_steps=1
    )
    fit(module, DataLoader(data, batch_size=6), tmp_path, [callback], max_epochs=1)

    collate = torch.utils.data.default_collate

    def huber() -> Tensor:
        batch = collate(data)
        return nn.functional.huber_loss(start.net(batch["x"]).squeeze(1), batch["y"], reduction="none") / 6

    examples = oracle.matrix(oracle.gradients(start, huber))
    questions = oracle.matrix(oracle.gradients(start, lambda: squared_error(start, collate(asked))))
    store = ScoreStore.open(tmp_path / "online")
    assert store.query_ids.tolist() == [100, 101, 102]
    expected = 0.01 * examples @ questions.T
    assert oracle.relative_error(torch.from_numpy(np.array(store.matrix("dot"))), expected) < 1e-9


def test_an_example_that_is_drawn_twice_is_counted_twice(tmp_path: Path) -> None:
    examples = rows("gpt2", 2)
    twice = [examples[0], examples[1], examples[0]]
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online", scores=("cosine",), refresh_every_n_steps=1)
    loader = DataLoader(examples, batch_size=3, sampler=[0, 1, 0])  # type: ignore[arg-type]
    fit(Module("gpt2"), loader, tmp_path, [callback], max_epochs=1)
    apart = [{**row, "example_id": i} for i, row in enumerate(twice)]
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "apart", scores=("cosine",), refresh_every_n_steps=1)
    fit(Module("gpt2"), DataLoader(apart, batch_size=3), tmp_path, [callback], max_epochs=1)
    merged, each = (ScoreStore.open(tmp_path / name).matrix("cosine") for name in ("online", "apart"))
    np.testing.assert_allclose(merged[0], each[0] + each[2], rtol=1e-9)


def test_parameters_choose_what_scores_see(tmp_path: Path) -> None:
    callback = OnlineTracIn(
        queries("gpt2"), tmp_path / "online", parameters=("*.attn.*", "!*.bias"), refresh_every_n_steps=1
    )
    fit(Module("gpt2"), DataLoader(rows("gpt2", 4), batch_size=4), tmp_path, [callback], max_epochs=1)
    lines = ScoreStore.open(tmp_path / "online").manifest["coverage"]
    covered = {line["parameter"] for line in lines if line["status"] == "covered"}
    layers = ("c_attn", "c_proj")
    assert covered == {f"model.transformer.h.{i}.attn.{layer}.weight" for i in (0, 1) for layer in layers}


def test_the_manifest_says_how_the_scores_came_about(tmp_path: Path) -> None:
    callback = OnlineTracIn(queries("t5"), tmp_path / "online", refresh_every_n_steps=3)
    fit(Module("t5"), DataLoader(rows("t5", 8), batch_size=4), tmp_path, [callback])
    manifest = ScoreStore.open(tmp_path / "online").manifest
    assert manifest["complete"] is True
    assert (manifest["first_step"], manifest["steps"], manifest["refresh_every_n_steps"]) == (0, 4, 3)
    assert [one["class"] for one in manifest["optimizers"]] == ["torch.optim.sgd.SGD"]
    assert manifest["query_losses"] == "ftrace.online.queries.query_losses.huggingface_losses"
    assert manifest["self_check"] == {"failures": []}


class Interrupt(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            raise KeyboardInterrupt


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online", refresh_every_n_steps=1)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(Module("gpt2"), DataLoader(rows("gpt2", 9), batch_size=3), tmp_path, [callback, Interrupt()])
    assert not (tmp_path / "online").exists()
    store = ScoreStore.open(tmp_path / "online-incomplete")
    assert store.manifest["complete"] is False
    assert store.manifest["steps"] == 2
    assert len(store.example_ids) == 6


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_projected_scores_are_exact_with_enough_directions(kind: str, tmp_path: Path) -> None:
    """No axis is longer than 48, so nothing is lost; the self-check looks on in the projected space."""
    loader = DataLoader(rows(kind, 8), batch_size=3)
    stores = []
    for side in (None, 48):
        online = OnlineTracIn(
            queries(kind), tmp_path / str(side), scores=("dot", "cosine"), refresh_every_n_steps=2,
            projection_side=side,
        )  # fmt: skip
        fit(Module(kind, groups=True), loader, tmp_path, [online], gradient_clip_val=0.5)
        stores.append(ScoreStore.open(tmp_path / str(side)))
    exact, projected = stores
    assert exact.manifest["projection_side"] is None
    assert projected.manifest["projection_side"] == 48
    for kind_of_score in ("dot", "cosine"):
        for query_id in exact.query_ids:
            np.testing.assert_allclose(
                projected.scores(query_id, kind_of_score), exact.scores(query_id, kind_of_score), rtol=1e-5, atol=1e-8
            )


def test_projected_scores_are_the_projected_products(tmp_path: Path) -> None:
    """One step of SGD: the scores are the learning rate times the products of projected gradients, seed by seed."""
    example_rows, query_rows = rows("gpt2", 3), rows("gpt2", 2, seed=1, key="query_id")
    collate = torch.utils.data.default_collate
    module = Module("gpt2")
    found = []
    for batch in (example_rows, query_rows):
        labels = collate(batch)["labels"][:, 1:]
        scale = (labels != -100).sum() if batch is example_rows else 1
        own = oracle.gradients(module, lambda b=batch, n=scale: tiny.losses(module.model, collate(b)) / n)
        projection = Projection(3, seed=9)
        found.append(
            torch.stack([torch.cat([projection.project(n, g[None]).flatten() for n, g in row.items()]) for row in own])
        )
    online = OnlineTracIn(DataLoader(query_rows, 2), tmp_path / "s", projection_side=3, seed=9, refresh_every_n_steps=1)
    fit(module, DataLoader(example_rows, 3), tmp_path, [online], max_epochs=1)
    store = ScoreStore.open(tmp_path / "s")
    scores = np.stack([store.scores(query_id, "dot") for query_id in store.query_ids], 1)
    np.testing.assert_allclose(scores, 0.1 * (found[0] @ found[1].T).numpy(), rtol=1e-5, atol=1e-9)


def test_two_instances_in_one_run_score_as_each_would_alone(tmp_path: Path) -> None:
    """Two sets of queries, of other sizes than the batches, refreshed at other times."""

    def callback(name: str, count: int, every: int) -> OnlineTracIn:
        loader = DataLoader(rows("gpt2", count, seed=count, key="query_id", length=6), batch_size=3)
        return OnlineTracIn(loader, tmp_path / name, scores=("dot", "cosine"), refresh_every_n_steps=every)

    loader = DataLoader(rows("gpt2", 8), batch_size=4)
    plain, both = Module("gpt2", torch.float32), Module("gpt2", torch.float32)
    fit(plain, loader, tmp_path)
    fit(both, loader, tmp_path, [callback("a", 5, 1), callback("b", 3, 2)])
    assert torch.equal(weights(plain), weights(both))
    for name, count, every in (("a", 5, 1), ("b", 3, 2)):
        fit(Module("gpt2", torch.float32), loader, tmp_path, [callback(f"alone-{name}", count, every)])
        for kind in ("dot", "cosine"):
            together, alone = (ScoreStore.open(tmp_path / f"{n}{name}").matrix(kind) for n in ("", "alone-"))
            np.testing.assert_array_equal(together, alone)


def test_checkpointed_activations(tmp_path: Path) -> None:
    """Of both kinds."""
    stores = []
    for reentrant in (None, False, True):
        module = Module("gpt2")
        if reentrant is not None:
            module.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            module.model.enable_input_require_grads()
        callback = OnlineTracIn(queries("gpt2"), tmp_path / f"online-{reentrant}", refresh_every_n_steps=1)
        fit(module, DataLoader(rows("gpt2", 4), batch_size=4), tmp_path, [callback])
        stores.append(ScoreStore.open(tmp_path / f"online-{reentrant}").matrix("dot"))
    np.testing.assert_allclose(stores[1], stores[0], rtol=1e-9)
    np.testing.assert_allclose(stores[2], stores[0], rtol=1e-9)

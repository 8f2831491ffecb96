"""`ftrace.online.trace`: loops written by hand, without Lightning, held against the replay."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from transformers import GPT2Config, GPT2LMHeadModel

from ftrace.online import SelfCheckError, trace
from ftrace.scores import ScoreStore
from helpers import late_gradients, replay
from helpers.replay import OPTIMIZERS
from helpers.replay_runs import EXAMPLES, batches, fit, hold, queries

KINDS = ("dot", "update", "cosine")


class Bare(nn.Module):
    """The replay's net as a module of torch alone."""

    def __init__(self, net: replay.Net) -> None:
        super().__init__()
        self.table, self.net = copy.deepcopy(net.table), copy.deepcopy(net.net)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["x"].to(self.table.weight.dtype) + self.table(batch["word"]))

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch).square().mean(1)


def mean_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch).square().mean(1).mean()


def optimizer_and_schedule(model: nn.Module, name: str) -> tuple[torch.optim.Optimizer, Any]:
    """As the replay has them."""
    parameters = list(model.parameters())
    optimizer = OPTIMIZERS[name]([{"params": parameters[:3]}, {"params": parameters[3:], "lr": 0.02}])
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def train(
    output_dir: Path, model: nn.Module, name: str = "adamw", *, epochs: int = 2, accumulate: int = 1,
    clip: float | None = None, size: int = 2, loss: Callable[[Any, Any], Tensor] = mean_loss, **settings: Any,
) -> ScoreStore:  # fmt: skip
    optimizer, schedule = optimizer_and_schedule(model, name)
    settings = {"scores": KINDS, "queries": queries(), "precision": "64-true", "refresh_every_n_steps": 1, **settings}
    with trace(model, optimizer, loss, output_dir=output_dir, **settings) as run:
        for epoch in range(epochs):
            run.epoch = epoch
            for index, batch in enumerate(DataLoader(EXAMPLES, batch_size=size)):  # type: ignore[arg-type, var-annotated]
                run.backward(run.loss(batch) / accumulate)
                if (index + 1) % accumulate == 0:
                    if clip is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), clip)
                    optimizer.step()
                    optimizer.zero_grad()
                    schedule.step()
    return ScoreStore.open(output_dir)


def windows(accumulate: int = 1, epochs: int = 2) -> list[list[list[replay.Row]]]:
    of_epoch = batches()
    return epochs * [of_epoch[i : i + accumulate] for i in range(0, len(of_epoch), accumulate)]


@pytest.mark.parametrize(
    ("name", "accumulate", "clip", "settings"),
    [
        ("sgd", 1, None, {}),
        ("momentum", 1, 0.05, {}),
        ("adamw", 2, None, {}),
        ("adam", 2, 0.05, {}),
        ("adafactor", 1, None, {}),
        ("nesterov", 1, None, {"momentum": "exact"}),
        ("adamw", 1, None, {"momentum": "exact", "refresh_every_n_steps": "auto"}),
    ],
)
def test_scores_are_those_of_the_replay(
    name: str, accumulate: int, clip: float | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    net = replay.Net(OPTIMIZERS[name])
    store = train(tmp_path / "s", Bare(net), name, accumulate=accumulate, clip=clip, **settings)
    if settings:
        assert store.manifest["momentum"] == "exact"
        assert store.manifest["ledger"]["balanced"] is True
    else:
        hold(store, net, windows(accumulate), clip=clip, accumulate=accumulate)


@pytest.mark.parametrize("settings", [{"integration": "trapezoid", "refresh_every_n_steps": 3}, {"momentum": "exact"}])
def test_scores_are_those_of_the_same_loop_under_lightning(settings: dict[str, Any], tmp_path: Path) -> None:
    net = replay.Net(OPTIMIZERS["adamw"])
    settings = {"scores": KINDS, "breakdown": ("epoch", "layer"), "refresh_every_n_steps": 1, **settings}
    ours = train(tmp_path / "ours", Bare(net), **settings)
    theirs = fit(tmp_path / "lightning", net, online=settings)
    assert ours.breakdown == theirs.breakdown
    for kind in KINDS:
        np.testing.assert_allclose(ours.matrix(kind), theirs.matrix(kind), rtol=1e-8, atol=1e-12)


def hooks_on(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    of_layers = [hook for m in model.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]
    return [*of_layers, *optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks]


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    """Bit by bit, dropout and shuffling included; and no hook is left."""
    ends = []
    for traced in (True, False):
        torch.manual_seed(5)
        model = Bare(replay.Dropout(OPTIMIZERS["adamw"]))
        optimizer, schedule = optimizer_and_schedule(model, "adamw")
        run = trace(model, optimizer, mean_loss, queries=queries(), output_dir=tmp_path / "s", precision="64-true")
        loader: DataLoader = DataLoader(EXAMPLES, batch_size=2, shuffle=True)  # type: ignore[arg-type]
        with run if traced else contextlib.nullcontext():
            for batch in loader:
                run.backward(run.loss(batch)) if traced else mean_loss(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        ends.append((weights, torch.get_rng_state(), len(hooks_on(model, optimizer))))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """State saved with a checkpoint of the user's own, in the middle of an epoch."""
    net = replay.Net(OPTIMIZERS["adamw"])
    settings: dict[str, Any] = {"integration": "trapezoid", "refresh_every_n_steps": 3, "scores": KINDS}
    whole = train(tmp_path / "whole", Bare(net), **settings)
    options: dict[str, Any] = {"queries": queries(), "precision": "64-true", **settings}

    model = Bare(net)
    optimizer, schedule = optimizer_and_schedule(model, "adamw")
    loader = [default_collate(batch) for batch in 2 * batches()]
    checkpoint: dict[str, Any] = {}

    def train_until_killed() -> None:
        with trace(model, optimizer, mean_loss, output_dir=tmp_path / "s", **options) as run:
            for step, batch in enumerate(loader):
                run.backward(run.loss(batch))
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                if step == 4:
                    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "trace": run}
                    checkpoint.update(copy.deepcopy({name: part.state_dict() for name, part in parts.items()}))
                if step == 6:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_until_killed()
    assert not (tmp_path / "s").exists()
    assert (tmp_path / "s-incomplete").exists()

    model = Bare(net)
    optimizer, schedule = optimizer_and_schedule(model, "adamw")
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    schedule.load_state_dict(checkpoint["schedule"])
    state = checkpoint["trace"]
    with trace(model, optimizer, mean_loss, output_dir=tmp_path / "s", state=state, **options) as run:
        for batch in loader[5:]:
            run.backward(run.loss(batch))
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    resumed = ScoreStore.open(tmp_path / "s")
    for kind in KINDS:
        np.testing.assert_allclose(resumed.matrix(kind), whole.matrix(kind), rtol=1e-6, atol=1e-12)


def test_a_first_gradient_that_comes_late_is_scaled_as_the_loss_was(tmp_path: Path) -> None:
    """What a rehearsal reads is of the loss that was differentiated: divided by the batches, times the loss scale."""
    accumulate, model = 4, late_gradients.Prompted()
    examples = late_gradients.batches(8, "example_id", 1)
    [asked] = late_gradients.batches(1, "query_id", 2)
    expected = late_gradients.replayed(copy.deepcopy(model), examples, asked, accumulate)
    optimizer = torch.optim.SGD(model.parameters(), late_gradients.RATE)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with trace(
        model, optimizer, lambda model, batch: model.example_losses(batch).mean(),
        queries=DataLoader([asked], batch_size=None), output_dir=tmp_path / "s", precision="64-true", scaler=scaler,  # type: ignore[arg-type]
    ) as run:  # fmt: skip
        for index, batch in enumerate(examples):
            run.backward(scaler.scale(run.loss(batch) / accumulate))
            if (index + 1) % accumulate == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    store = ScoreStore.open(tmp_path / "s")
    scores = store.matrix("dot")[np.argsort(store.example_ids)][:, np.argsort(store.query_ids)]
    np.testing.assert_allclose(scores, expected, atol=1e-6 * float(expected.abs().max()))


def test_texts_are_beside_the_scores(tmp_path: Path) -> None:
    def describe(batch: dict[str, Tensor]) -> dict[str, list[str]]:
        key = "query_id" if "query_id" in batch else "example_id"
        return {"text": [f"{key} {i}" for i in batch[key].tolist()]}

    for number, given in enumerate((describe, ([{"example_id": 1, "text": "example_id 1"}], None), None)):
        store = train(tmp_path / str(number), Bare(replay.Net(OPTIMIZERS["sgd"])), describe=given)
        assert (store.examples is None) == (given is None)
        if store.examples is not None:
            rows = store.examples.rows([1])
            assert rows == [{"example_id": 1, "text": "example_id 1"}]
        assert (store.queries is None) == (given is not describe)


def test_a_hugging_face_model_needs_no_losses(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=31, n_positions=8, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0)
    model = GPT2LMHeadModel(config).train()
    rows = [
        {"input_ids": t, "labels": t} for t in torch.randint(31, (6, 8), generator=torch.Generator().manual_seed(1))
    ]
    examples = [{**row, "example_id": i} for i, row in enumerate(rows)]
    asked = [{**row, "query_id": i} for i, row in enumerate(rows[:2])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with trace(model, optimizer, queries=asked, output_dir=tmp_path / "s") as run:
        for batch in DataLoader(examples, batch_size=3):  # type: ignore[arg-type, var-annotated]
            optimizer.zero_grad()
            run.backward(run.loss(batch))
            optimizer.step()
    store = ScoreStore.open(tmp_path / "s")
    assert [store.top(query, k=1)[0][0] for query in (0, 1)] == [0, 1]  # each query is an example
    assert store.manifest["query_losses"] == "ftrace.online.queries.query_losses.huggingface_losses"


@pytest.mark.parametrize(
    ("misuse", "error", "message"),
    [
        (lambda run, batch, o: run.loss(batch).backward() or o.step(), ValueError, r"Call run\.backward\(loss\)"),
        (lambda run, batch, o: run.backward(torch.ones((), requires_grad=True)), ValueError, r"a call of run\.loss"),
        (
            lambda run, batch, o: (run.loss(batch), run.backward(torch.ones((), requires_grad=True) * 2)),
            ValueError,
            "doesn't depend on it",
        ),
        (
            lambda run, batch, o: o.step(lambda: run.loss(batch)),
            ValueError,
            "Call the closure before the step",
        ),
        (
            lambda run, batch, o: (
                run.backward(run.loss(batch)), o.param_groups[0]["params"][0].grad.mul_(3), o.step()
            ),
            SelfCheckError,
            "don't sum to|stepped with a gradient",
        ),
    ],
)  # fmt: skip
def test_misuse_is_an_error_that_says_what_to_do(
    misuse: Callable[..., Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = Bare(replay.Net(OPTIMIZERS["sgd"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(error, match=message),
        trace(model, optimizer, mean_loss, queries=queries(), output_dir=tmp_path / "s", precision="64-true") as run,
    ):
        misuse(run, default_collate(EXAMPLES[:3]), optimizer)


def test_a_training_loss_that_steps_or_returns_no_number_is_refused(tmp_path: Path) -> None:
    model = Bare(replay.Net(OPTIMIZERS["sgd"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def steps(model: nn.Module, batch: Any) -> Tensor:
        optimizer.step()
        return mean_loss(model, batch)

    cases: list[tuple[Any, str]] = [
        (steps, "training_loss steps an optimizer"),
        (lambda model, batch: model.example_losses(batch), r"expected one number .* found shape \(3,\)"),
    ]
    for loss, message in cases:
        with (
            pytest.raises((ValueError, RuntimeError), match=message),
            trace(model, optimizer, loss, queries=queries(), output_dir=tmp_path / "s", precision="64-true") as run,
        ):
            run.loss(default_collate(EXAMPLES[:3]))


def test_unknown_settings_are_refused() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"expected settings among \[.*'scores'.*\], found 'score'"):
        trace(model, optimizer, mean_loss, queries=[], score=("dot",))
    with pytest.raises(ValueError, match="precision: expected one of"):
        trace(model, optimizer, mean_loss, queries=[], precision="bf16")


def test_lightning_is_not_imported() -> None:
    code = "import sys, ftrace.online; print(sorted(m for m in sys.modules if m.split('.')[0] == 'lightning'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_queries_of_different_lengths_need_no_padding(tmp_path: Path) -> None:
    """Nor tensors: rows of a list are batched by their lengths, and scores are those of one query at a time."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16)).double()
    examples = [{"input_ids": torch.arange(6) + i, "labels": torch.arange(6) + i, "example_id": i} for i in range(4)]
    asked = [[1, 2, 3], [4, 5, 6, 7], [2, 3, 4], [9, 8, 7, 6, 5]]
    rows = [{"input_ids": ids, "labels": ids, "query_id": f"query {i}"} for i, ids in enumerate(asked)]
    one_by_one = [
        {name: torch.tensor([value]) if isinstance(value, list) else [value] for name, value in row.items()}
        for row in rows
    ]
    stores = []
    for number, given in enumerate([rows, DataLoader(one_by_one, batch_size=None)]):  # type: ignore[arg-type]
        torch.manual_seed(0)  # of dropout
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        with trace(
            trained, optimizer, queries=given, output_dir=tmp_path / str(number), precision="64-true", scores=("dot",)
        ) as run:
            for batch in DataLoader(examples, batch_size=2):  # type: ignore[arg-type]
                optimizer.zero_grad()
                run.backward(run.loss(batch))
                optimizer.step()
        stores.append(ScoreStore.open(tmp_path / str(number)))
    for row in rows:
        first, second = (store.scores(str(row["query_id"])) for store in stores)
        np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-15)

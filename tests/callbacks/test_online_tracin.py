"""OnlineTracIn against a loop of plain autograd, in training runs as people have them."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from ftrace.callbacks import OnlineTracIn, SelfCheckError
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


@pytest.mark.parametrize(("accumulate", "side"), [(1, None), (2, None), (2, 3)])
@pytest.mark.parametrize("kind", tiny.MODELS)
def test_training_is_bit_identical_with_and_without(
    kind: str, accumulate: int, side: int | None, tmp_path: Path
) -> None:
    dropout = {"dropout_rate": 0.1} if kind == "t5" else {"resid_pdrop": 0.1, "attn_pdrop": 0.1, "embd_pdrop": 0.1}
    trained = []
    states = []
    for online in (False, True):
        module = Module(kind, torch.float32, **dropout)
        callback = OnlineTracIn(
            queries(kind), tmp_path / "online", scores=("dot", "cosine"), refresh_every_n_steps=2, projection_side=side
        )
        loader = DataLoader(rows(kind, 13), batch_size=4, shuffle=True)
        fit(module, loader, tmp_path, [callback] * online, accumulate_grad_batches=accumulate, gradient_clip_val=1.0)
        trained.append(weights(module))
        states.append(torch.get_rng_state())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
        assert all(m.training for m in module.modules())
    assert torch.equal(*trained)
    assert torch.equal(*states)


def same(first: Any, second: Any) -> bool:
    """Whether two checkpoints are equal, bit by bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_user_hooks_and_checkpoints_are_left_alone(tmp_path: Path) -> None:
    saved = []
    heard = []
    for online in (False, True):
        module = Module("gpt2", torch.float32)
        calls: list[str] = []
        module.model.transformer.h[0].register_forward_hook(
            lambda layer, *_, log=calls: log.append("training" if layer.training else "evaluation")
        )
        callback = OnlineTracIn(queries("gpt2"), tmp_path / "online", query_losses=lambda m, b: tiny.losses(m.model, b))
        checkpoint = pl.callbacks.ModelCheckpoint(tmp_path / "checkpoints", filename="last")
        loader = DataLoader(rows("gpt2", 8), batch_size=4)
        fit(module, loader, tmp_path, [checkpoint, *[callback] * online], enable_checkpointing=True)
        file = tmp_path / "checkpoints" / "last.ckpt"
        saved.append(torch.load(file, weights_only=True))
        file.unlink()
        assert len(module.model.transformer.h[0]._forward_hooks) == 1
        heard.append(calls.count("training"))
    passes = ScoreStore.open(tmp_path / "online").manifest["rows"]["passes"]
    assert heard == [4, 4 + passes["forward"] + passes["backward"]]  # rehearsals run the user's step as it is
    without, with_ours = saved
    assert without.keys() == with_ours.keys()
    for key in without.keys() - {"callbacks"}:
        assert same(without[key], with_ours[key]), key
    ours = with_ours["callbacks"].keys() - without["callbacks"].keys()
    assert [key.split("{")[0] for key in ours] == ["OnlineTracIn"]
    assert with_ours["callbacks"].keys() - ours == without["callbacks"].keys()


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
    callback = OnlineTracIn(asked, tmp_path / "online", squared_error, id_key="row", query_id_key="q")
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
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online", scores=("cosine",))
    loader = DataLoader(examples, batch_size=3, sampler=[0, 1, 0])  # type: ignore[arg-type]
    fit(Module("gpt2"), loader, tmp_path, [callback], max_epochs=1)
    apart = [{**row, "example_id": i} for i, row in enumerate(twice)]
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "apart", scores=("cosine",))
    fit(Module("gpt2"), DataLoader(apart, batch_size=3), tmp_path, [callback], max_epochs=1)
    merged, each = (ScoreStore.open(tmp_path / name).matrix("cosine") for name in ("online", "apart"))
    np.testing.assert_allclose(merged[0], each[0] + each[2], rtol=1e-9)


def test_parameters_choose_what_scores_see(tmp_path: Path) -> None:
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online", parameters=("*.attn.*", "!*.bias"))
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
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online")
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(Module("gpt2"), DataLoader(rows("gpt2", 9), batch_size=3), tmp_path, [callback, Interrupt()])
    assert not (tmp_path / "online").exists()
    store = ScoreStore.open(tmp_path / "online-incomplete")
    assert store.manifest["complete"] is False
    assert store.manifest["steps"] == 2
    assert len(store.example_ids) == 6


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, "clipping by value is not linear"),
    ],
    ids=["value clipping"],
)
def test_unsupported_loops_are_refused_by_name(trainer: dict[str, Any], message: str, tmp_path: Path) -> None:
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online")
    loader = DataLoader(rows("gpt2", 4), batch_size=4)
    with pytest.raises(Exception, match=message):
        fit(Module("gpt2", torch.float32), loader, tmp_path, [callback], **trainer)
    assert not (tmp_path / "online").exists()


class Closure(Module):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


def test_lbfgs_is_refused_by_name(tmp_path: Path) -> None:
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online")
    with pytest.raises(ValueError, match="LBFGS evaluates a batch several times"):
        fit(Closure("gpt2", torch.float32), DataLoader(rows("gpt2", 4), batch_size=4), tmp_path, [callback])


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
    online = OnlineTracIn(DataLoader(query_rows, 2), tmp_path / "s", projection_side=3, seed=9)
    fit(module, DataLoader(example_rows, 3), tmp_path, [online], max_epochs=1)
    store = ScoreStore.open(tmp_path / "s")
    scores = np.stack([store.scores(query_id, "dot") for query_id in store.query_ids], 1)
    np.testing.assert_allclose(scores, 0.1 * (found[0] @ found[1].T).numpy(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": ("wise",)}, r"scores: expected some of \['dot', 'update', 'cosine', .*\], found \('wise',\)"),
        ({"scores": "dot"}, "scores: expected some of"),
        ({"scores": ()}, "scores: expected some of"),
        ({"refresh_every_n_steps": 0}, "refresh_every_n_steps: expected at least 1, found 0"),
        ({"projection_side": 0}, "projection_side: expected None or at least 1, found 0"),
        ({"integration": "simpson"}, r"integration: expected one of \['left', 'trapezoid'\], found 'simpson'"),
        ({"momentum": "none"}, r"momentum: expected one of \['eventual', 'exact'\], found 'none'"),
        ({"momentum": "exact"}, 'momentum="exact" is of the kind "update": expected it in scores'),
        ({"breakdown": ("head",)}, "breakdown: expected some of"),
        ({"staleness_every": -1}, "staleness_every: expected at least 0, found -1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnlineTracIn(**arguments)


def test_batches_without_ids_say_what_to_do(tmp_path: Path) -> None:
    nameless = [{name: value for name, value in row.items() if name != "example_id"} for row in rows("gpt2", 4)]
    with pytest.raises(
        ValueError, match=r'batch has no "example_id": found keys \[.*Add ids with ftrace.data.WithExampleIds'
    ):
        fit(
            Module("gpt2"),
            DataLoader(nameless, batch_size=4),
            tmp_path,
            [OnlineTracIn(queries("gpt2"), tmp_path / "o")],
        )


def test_no_queries_no_losses_and_repeated_queries_say_what_to_do(tmp_path: Path) -> None:
    loader = DataLoader(rows("gpt2", 4), batch_size=4)
    with pytest.raises(ValueError, match=r"no queries: expected queries=DataLoader"):
        fit(Module("gpt2"), loader, tmp_path, [OnlineTracIn(output_dir=tmp_path / "o")])
    twice = rows("gpt2", 2, key="query_id") * 2
    with pytest.raises(ValueError, match=r'expected each "query_id" once'):
        fit(Module("gpt2"), loader, tmp_path, [OnlineTracIn(DataLoader(twice, batch_size=2), tmp_path / "o")])
    module = Module("gpt2")
    module.model.can_generate = lambda: False
    with pytest.raises(ValueError, match=r"don't know the loss of a query: Module has no example_losses"):
        fit(module, loader, tmp_path, [OnlineTracIn(queries("gpt2"), tmp_path / "o")])


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "online").mkdir()
    (tmp_path / "online" / "thesis.txt").write_text("three years")
    with pytest.raises(ValueError, match="won't write scores to"):
        fit(
            Module("gpt2"), DataLoader(rows("gpt2", 4), batch_size=4), tmp_path,
            [OnlineTracIn(queries("gpt2"), tmp_path / "online")],
        )  # fmt: skip
    assert (tmp_path / "online" / "thesis.txt").read_text() == "three years"


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Net(pl.LightningModule):
    """A tiny regression whose net is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["x"]).square().flatten(1).sum(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.example_losses(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def net_rows(count: int, key: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(count)
    return [{"x": torch.randn(3, 4, generator=generator).double(), key: i} for i in range(count)]


def run_net(net: nn.Module, tmp_path: Path, **arguments: Any) -> ScoreStore:
    asked = DataLoader(net_rows(3, "query_id"), batch_size=3)
    shutil.rmtree(tmp_path / "online", ignore_errors=True)
    callback = OnlineTracIn(asked, tmp_path / "online", **arguments)
    fit(Net(net), DataLoader(net_rows(6, "example_id"), batch_size=3), tmp_path, [callback])
    return ScoreStore.open(tmp_path / "online")


def hold_net(net: nn.Module, tmp_path: Path, **arguments: Any) -> None:
    """Against a replay by plain autograd, one example at a time."""
    module = Net(copy.deepcopy(net))
    store = run_net(copy.deepcopy(net), tmp_path, **arguments)
    asked = default_collate(net_rows(3, "query_id"))
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for start in (0, 3) * (store.manifest["steps"] // 2):
        batch = default_collate(net_rows(6, "example_id")[start : start + 3])
        queries_QP = oracle.matrix(oracle.gradients(module, lambda: module.example_losses(asked)))
        rows = oracle.gradients(module, lambda b=batch: module.example_losses(b) / 3)
        expected[start : start + 3] += 0.1 * oracle.matrix(rows) @ queries_QP.T
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter -= 0.1 * sum(row[name] for row in rows)
    np.testing.assert_allclose(store.matrix("dot"), expected.numpy(), rtol=1e-9, atol=1e-12)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn, self.stretch = (nn.Parameter(torch.tensor([0.5 + 1j] * 2, dtype=torch.cdouble)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)) * self.turn + self.stretch
        return torch.view_as_real(turned).flatten(-2)


def test_an_uncovered_parameter_is_an_error_that_names_it_or_a_line_in_the_manifest(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Complex())
    message = r"net.1.turn: it holds complex numbers.*\n.*\n.*\"!net.1.turn\", \"!net.1.stretch\""
    with pytest.raises(ValueError, match=message):
        run_net(net, tmp_path)
    with pytest.warns(UserWarning, match="can't cover 2 trained parameters"):
        store = run_net(net, tmp_path, strict=False)
    gaps = [line["parameter"] for line in store.manifest["coverage"] if line["status"] == "unsupported"]
    assert gaps == ["net.1.turn", "net.1.stretch"]
    run_net(net, tmp_path, parameters=("*", "!net.1.*"))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_parameter_that_is_added_to_a_known_layer_is_covered(name: str, tmp_path: Path) -> None:
    with pytest.warns(FutureWarning):
        net = nn.Sequential(nn.Linear(4, 4), nn.utils.weight_norm(nn.Linear(4, 4), name=name))
    with torch.no_grad():
        net(torch.zeros(1, 4))
    store = run_net(net, tmp_path)
    assert all(line["status"] == "covered" for line in store.manifest["coverage"])


class BorrowsWeight(nn.Module):
    """Uses a layer's weight without running the layer, so no hook of the layer fires."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer.weight


def test_a_weight_that_is_used_without_its_layer_is_read_off_the_module_around_it(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), BorrowsWeight())
    hold_net(net, tmp_path)
    store = ScoreStore.open(tmp_path / "online")
    assert store.manifest["rows"]["read_off_outer_modules"]["net.1.layer.weight"] == "net.1"


class MixesExamples(nn.Module):
    """Takes the mean over the batch away, so every example's output depends on all."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 * x.mean(0, keepdim=True)


class TimeFirst(nn.Module):
    """Runs its layer over [T, B, D] where T happens to equal B: a batch axis mixed up, which conserves the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1).cumsum(1)


class UsesWeightTwice(nn.Module):
    """Uses a layer's weight once more behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.layer.weight


@pytest.mark.parametrize("self_check", [True, False])
@pytest.mark.parametrize(
    "net", [nn.Sequential(TimeFirst(), nn.Linear(4, 2)), nn.Sequential(UsesWeightTwice(), nn.Linear(4, 2))]
)
def test_what_a_layer_alone_does_not_tell_is_found_out(net: nn.Module, self_check: bool, tmp_path: Path) -> None:
    hold_net(net, tmp_path, self_check=self_check)


@pytest.mark.parametrize("self_check", [True, False])
def test_layers_behind_a_mix_of_examples_are_refused_by_name(self_check: bool, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), MixesExamples(), nn.Linear(4, 2))
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match=r"layer 'net.2' \(Linear\) returned .* may mix them.*\"!net.2.weight\""):
        run_net(net, tmp_path, self_check=self_check)
    assert not (tmp_path / "online").exists()
    with pytest.warns(UserWarning, match="may mix them"):
        store = run_net(before, tmp_path, strict=False, self_check=self_check)
    assert store.manifest["rows"]["left_out"].keys() == {"net.2.weight", "net.2.bias"}


def test_conservation_catches_a_gradient_that_changes_later(tmp_path: Path) -> None:
    """A layer used behind the hooks' back, but only once training is under way."""

    class Later(UsesWeightTwice):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += self.training
            return super().forward(x) if self.runs > 3 else self.layer(x)

    with pytest.raises(SelfCheckError, match=r"at step 3 the examples' products sum to .*, and the gradient's to"):
        run_net(nn.Sequential(Later(), nn.Linear(4, 2)), tmp_path)


def test_a_gradient_changed_by_a_hook_is_named(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    net[0].weight.register_hook(lambda grad: 2 * grad)
    with pytest.raises(ValueError, match=r"'net\.0\.weight' has a hook of yours that changes its gradient"):
        run_net(net, tmp_path)
    run_net(net, tmp_path, parameters=("*", "!net.0.weight"))


def test_freezing_during_training_ends_a_parameters_contributions(tmp_path: Path) -> None:
    class Freeze(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.net[0].weight.requires_grad_(trainer.current_epoch == 0)

    stores = []
    for name, callbacks in (("whole", []), ("frozen", [Freeze()])):
        module = Net(nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2)))
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        asked = DataLoader(net_rows(3, "query_id"), batch_size=3)
        callback = OnlineTracIn(asked, tmp_path / name, parameters=("net.0.weight",))
        fit(module, DataLoader(net_rows(6, "example_id"), batch_size=3), tmp_path, [*callbacks, callback])
        stores.append(ScoreStore.open(tmp_path / name).matrix("dot"))
    assert np.abs(stores[0]).max() > np.abs(stores[1]).max() > 0


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


def test_gradients_that_no_step_has_used_leave_no_scores(tmp_path: Path) -> None:
    class EverySecond(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            if batch_idx % 2:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            else:
                optimizer_closure()

    asked = DataLoader(net_rows(3, "query_id"), batch_size=3)
    callback = OnlineTracIn(asked, tmp_path / "online")
    module = EverySecond(nn.Sequential(nn.Linear(4, 2)))
    fit(module, DataLoader(net_rows(8, "example_id"), batch_size=2), tmp_path, [callback], max_epochs=1)
    store = ScoreStore.open(tmp_path / "online")
    assert store.example_ids.tolist() == [2, 3, 6, 7]
    assert store.manifest["steps"] == 2


def clip(module: Net, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(module.parameters(), 1e-3)


def negate(module: Net, optimizer: torch.optim.Optimizer) -> None:
    for parameter in module.parameters():
        parameter.grad.neg_()


def zero(module: Net, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()


@pytest.mark.parametrize("change", [clip, negate, zero])
def test_a_gradient_changed_after_the_callback_is_caught(change: Any, tmp_path: Path) -> None:
    class Changes(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            change(self, optimizer)

    asked = DataLoader(net_rows(3, "query_id"), batch_size=3)
    module = Changes(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(
        SelfCheckError, match=r"at step 0 the optimizer was given a gradient of norm .* Something changes"
    ):
        fit(
            module, DataLoader(net_rows(6, "example_id"), batch_size=3), tmp_path,
            [OnlineTracIn(asked, tmp_path / "online")],
        )  # fmt: skip


class Adagrad(torch.optim.Optimizer):
    """Somebody's own: it writes to .grad, as torch's never do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.grad.add_(parameter)
                parameter.sub_(0.1 * parameter.grad)
        return loss


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, foreach=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
        lambda p: torch.optim.Adafactor(p, lr=0.01),
        Adagrad,
    ],
    ids=["adamw", "foreach", "fused", "nesterov", "rmsprop", "adafactor", "own"],
)
def test_no_false_alarm_with_any_optimizer(make: Any, tmp_path: Path) -> None:
    class With(Module):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make(self.parameters())

    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online")
    loader = DataLoader(rows("gpt2", 9), batch_size=2)
    fit(With("gpt2", torch.float32), loader, tmp_path, [callback], gradient_clip_val=0.1, accumulate_grad_batches=2)
    assert ScoreStore.open(tmp_path / "online").manifest["self_check"] == {"failures": []}


def test_no_false_alarm_where_contributions_cancel(tmp_path: Path) -> None:
    """At the least-squares solution the gradient is rounding and nothing else."""

    class Fitted(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 1)
            ones = torch.cat([x, torch.ones(64, 1)], 1)
            solution = torch.linalg.lstsq(ones.double(), y.double()).solution.float()
            self.net.weight.data, self.net.bias.data = solution[:4].T.contiguous(), solution[4]

        def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
            return (self.net(batch["x"]) - batch["y"]).square().squeeze(1)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return self.example_losses(batch).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    x, y = torch.randn(64, 4), 5 * torch.randn(64, 1)
    data = [{"x": x[i], "y": y[i], "example_id": i, "query_id": i} for i in range(64)]
    callback = OnlineTracIn(DataLoader(data[:3], batch_size=3), tmp_path / "online")
    fit(Fitted(), DataLoader(data, batch_size=64), tmp_path, [callback])
    assert ScoreStore.open(tmp_path / "online").manifest["self_check"] == {"failures": []}


def test_clipping_that_lightning_does_not_do_is_not_counted(tmp_path: Path) -> None:
    stores = []
    for clip in (None, 0, -1.0):
        asked = DataLoader(net_rows(3, "query_id"), batch_size=3)
        module = Net(nn.Sequential(nn.Linear(4, 2, bias=False)))
        nn.init.ones_(module.net[0].weight)
        callback = OnlineTracIn(asked, tmp_path / f"online{clip}")
        loader = DataLoader(net_rows(6, "example_id"), batch_size=6)
        fit(module, loader, tmp_path, [callback], gradient_clip_val=clip)
        stores.append(np.array(ScoreStore.open(tmp_path / f"online{clip}").matrix("dot")))
    assert np.array_equal(stores[0], stores[1])
    assert np.array_equal(stores[0], stores[2])


def test_a_step_that_is_no_number_spoils_no_scores(tmp_path: Path) -> None:
    class Nan(Net):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (torch.nan if self.global_step == 1 else 1)

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            before = [parameter.detach().clone() for parameter in self.parameters()]
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            for parameter, old in zip(self.parameters(), before, strict=True):  # as loss scalers do
                parameter.data = torch.where(parameter.isnan(), old, parameter)

    def run(**arguments: Any) -> None:
        asked = DataLoader(net_rows(3, "query_id"), batch_size=3)
        callback = OnlineTracIn(asked, tmp_path / "online", **arguments)
        loader = DataLoader(net_rows(6, "example_id"), batch_size=2)
        fit(Nan(nn.Sequential(nn.Linear(4, 2))), loader, tmp_path, [callback], max_epochs=1)

    with pytest.warns(UserWarning, match="the contributions of step 1 are not finite.*Its scores are left out"):
        run()
    store = ScoreStore.open(tmp_path / "online")
    assert store.example_ids.tolist() == [0, 1, 4, 5]
    assert store.manifest["steps_left_out"] == [1]
    assert np.isfinite(store.matrix("dot")).all()


def test_two_instances_with_one_folder_are_refused(tmp_path: Path) -> None:
    loader = DataLoader(rows("gpt2", 4), batch_size=4)
    both = [OnlineTracIn(queries("gpt2"), tmp_path / "online"), OnlineTracIn(queries("gpt2"))]
    with pytest.raises(ValueError, match=r"two of them write to .* Give each an output_dir of its own"):
        fit(Module("gpt2"), loader, tmp_path, both)
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `OnlineTracIn`"):
        fit(Module("gpt2"), loader, tmp_path, [OnlineTracIn(queries("gpt2")) for _ in range(2)])


def test_queries_that_draw_random_numbers_disturb_nothing(tmp_path: Path) -> None:
    class Data(pl.LightningDataModule):
        def __init__(self, generator: torch.Generator) -> None:
            super().__init__()
            self.generator = generator

        def train_dataloader(self) -> DataLoader:
            return DataLoader(rows("gpt2", 9), batch_size=3, shuffle=True, generator=self.generator)

        def query_dataloader(self) -> DataLoader:
            half, _ = torch.utils.data.random_split(rows("gpt2", 6, key="query_id"), [3, 3])
            return DataLoader(half, batch_size=3, shuffle=True, generator=self.generator)

    trained = []
    for online in (False, True):
        module = Module("gpt2", torch.float32)
        callback = OnlineTracIn(output_dir=tmp_path / "online")
        fit(module, Data(torch.Generator().manual_seed(0)), tmp_path, [callback] * online)
        trained.append(weights(module))
    assert torch.equal(*trained)


def test_checkpointed_activations(tmp_path: Path) -> None:
    """Of both kinds."""
    stores = []
    for reentrant in (None, False, True):
        module = Module("gpt2")
        if reentrant is not None:
            module.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            module.model.enable_input_require_grads()
        callback = OnlineTracIn(queries("gpt2"), tmp_path / f"online-{reentrant}")
        fit(module, DataLoader(rows("gpt2", 4), batch_size=4), tmp_path, [callback])
        stores.append(ScoreStore.open(tmp_path / f"online-{reentrant}").matrix("dot"))
    np.testing.assert_allclose(stores[1], stores[0], rtol=1e-9)
    np.testing.assert_allclose(stores[2], stores[0], rtol=1e-9)

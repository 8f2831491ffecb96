"""Changed gradients are caught and sound ones raise no alarm; steps that are no steps leave no scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn, SelfCheckError
from ftrace.scores import ScoreStore
from helpers.language_runs import Module, fit, queries, rows
from helpers.net_runs import Net, UsesWeightTwice, net_rows, run_net


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


def test_gradients_that_no_step_has_used_leave_no_scores(tmp_path: Path) -> None:
    class EverySecond(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            if batch_idx % 2:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            else:
                optimizer_closure()

    asked = DataLoader(net_rows(3, "query_id"), batch_size=3)
    callback = OnlineTracIn(asked, tmp_path / "online", refresh_every_n_steps=1)
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
        SelfCheckError,
        match=r"at step 0 the optimizer stepped with a gradient of norm .* changed it in between",
    ):
        fit(
            module, DataLoader(net_rows(6, "example_id"), batch_size=3), tmp_path,
            [OnlineTracIn(asked, tmp_path / "online", refresh_every_n_steps=1)],
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

    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online", refresh_every_n_steps=1)
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
    callback = OnlineTracIn(DataLoader(data[:3], batch_size=3), tmp_path / "online", refresh_every_n_steps=1)
    fit(Fitted(), DataLoader(data, batch_size=64), tmp_path, [callback])
    assert ScoreStore.open(tmp_path / "online").manifest["self_check"] == {"failures": []}


def test_clipping_that_lightning_does_not_do_is_not_counted(tmp_path: Path) -> None:
    stores = []
    for clip in (None, 0, -1.0):
        asked = DataLoader(net_rows(3, "query_id"), batch_size=3)
        module = Net(nn.Sequential(nn.Linear(4, 2, bias=False)))
        nn.init.ones_(module.net[0].weight)
        callback = OnlineTracIn(asked, tmp_path / f"online{clip}", refresh_every_n_steps=1)
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
        callback = OnlineTracIn(asked, tmp_path / "online", **{"refresh_every_n_steps": 1, **arguments})
        loader = DataLoader(net_rows(6, "example_id"), batch_size=2)
        fit(Nan(nn.Sequential(nn.Linear(4, 2))), loader, tmp_path, [callback], max_epochs=1)

    with pytest.warns(UserWarning, match="the contributions of step 1 are not finite.*Its scores are left out"):
        run()
    store = ScoreStore.open(tmp_path / "online")
    assert store.example_ids.tolist() == [0, 1, 4, 5]
    assert store.manifest["steps_left_out"] == [1]
    assert np.isfinite(store.matrix("dot")).all()

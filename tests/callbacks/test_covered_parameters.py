"""Parameters that are used in odd ways: covered, read off another module, or refused by name."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers.language_runs import fit
from helpers.net_runs import Net, UsesWeightTwice, hold_net, net_rows, run_net


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
        callback = OnlineTracIn(asked, tmp_path / name, parameters=("net.0.weight",), refresh_every_n_steps=1)
        fit(module, DataLoader(net_rows(6, "example_id"), batch_size=3), tmp_path, [*callbacks, callback])
        stores.append(ScoreStore.open(tmp_path / name).matrix("dot"))
    assert np.abs(stores[0]).max() > np.abs(stores[1]).max() > 0

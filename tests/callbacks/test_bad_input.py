"""Each mistake gets an error that says what was expected, what was found, and what to do; nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer

ASKED = replay.rows(3, "query_id", seed=1)
EXAMPLES = replay.rows(6, "example_id")


def fit(
    tmp_path: Path, examples: list[replay.Row] = EXAMPLES, asked: list[replay.Row] = ASKED, losses: Any = None,
    module: Any = None, online: Any = (), collate: Any = None, **settings: Any,
) -> ScoreStore:  # fmt: skip
    queries = DataLoader(asked, batch_size=2)  # type: ignore[arg-type]
    callback = OnlineTracIn(queries, tmp_path / "online", losses, **{"refresh_every_n_steps": 1, **dict(online)})
    loader = DataLoader(examples, batch_size=2, collate_fn=collate)  # type: ignore[arg-type]
    trainer(tmp_path, callbacks=[callback], **settings).fit(module or replay.Net(OPTIMIZERS["adamw"]), loader)
    return ScoreStore.open(tmp_path / "online")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0.5] * 6, r'batch\["example_id"\]: expected integers of shape \[B\] or a list of names, found torch.float64'),
        ([True] * 6, r"found torch.bool \(2,\). Number the rows of the data set, not of the batch"),
        ([[1, 2]] * 6, r"expected integers of shape \[B\] or a list of names, found \["),
    ],
)
def test_ids_of_a_wrong_type(ids: list[Any], message: str, tmp_path: Path) -> None:
    rows = [{**row, "example_id": own} for row, own in zip(EXAMPLES, ids, strict=True)]
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, rows)


def test_a_query_that_comes_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"each \"query_id\" once, found some several times: \[8\]. Give each query"):
        fit(tmp_path, asked=[*ASKED, ASKED[1]])


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda m, b: m.example_losses(b).mean(), r"shape \(2,\), found \(\)\. It looks like a mean over the batch"),
        (lambda m, b: m.example_losses(b).tolist(), r"expected one loss per query, .* found list"),
        (lambda m, b: m.example_losses(b).detach(), r"expected losses that can be differentiated"),
        (lambda m, b: m.example_losses(b) / 0, r"found NaN or infinity for the queries \[1, 8\]"),
        (lambda m, b: m.example_losses(b).repeat(2), r"expected one loss per query, .* shape \(2,\), found \(4,\)"),
    ],
)
def test_losses_of_queries_that_are_none(losses: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, losses=losses)
    assert not (tmp_path / "online").exists()


class TwoHeads(replay.Net):
    def __init__(self) -> None:
        super().__init__(OPTIMIZERS["adamw"])
        self.other = nn.Linear(4, 1).double()


def test_queries_that_training_does_not_touch(tmp_path: Path) -> None:
    def losses(module: Any, batch: dict[str, Tensor]) -> Tensor:
        return module.other(batch["x"]).square().squeeze(1)

    with pytest.raises(ValueError, match=r"share no parameter with the training loss.*depend on \['other.bias'"):
        fit(tmp_path, losses=losses, module=TwoHeads())
    with pytest.warns(UserWarning, match="share no parameter with the training loss"):
        store = fit(tmp_path, losses=losses, module=TwoHeads(), online={"strict": False})
    assert not store.matrix("dot").any()


def test_the_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    first = fit(tmp_path, online={"seed": 7})
    message = r"holds the scores of another run \(6 steps\). Name another output_dir, or move or delete the folder"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path)
    assert ScoreStore.open(tmp_path / "online").manifest["run_id"] == first.manifest["run_id"]


def test_update_of_an_unknown_optimizer_is_refused_by_name(tmp_path: Path) -> None:
    module = replay.Net(lambda p: torch.optim.RMSprop(p, lr=0.01))
    with pytest.raises(
        ValueError, match=r'kind "update".*found torch.optim.rmsprop.RMSprop. Ask for "dot" and "cosine"'
    ):
        fit(tmp_path, module=module, online={"scores": ("update",)})
    assert fit(tmp_path, module=module, online={"scores": ("dot", "cosine")}).kinds == ("dot", "cosine")


def test_unsupported_strategies_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class DeepSpeedStrategy(Strategy):
        pass

    callback = OnlineTracIn(DataLoader(ASKED), tmp_path / "online")  # type: ignore[arg-type]
    made = trainer(tmp_path)
    made.strategy.__class__ = type("DeepSpeedStrategy", (Strategy,), dict(made.strategy.__class__.__dict__))
    with pytest.raises(ValueError, match=r'found DeepSpeedStrategy, .* Set Trainer\(strategy="ddp"\)'):
        callback.on_train_start(made, replay.Net(OPTIMIZERS["adamw"]))


class Diverges(replay.Net):
    """Its weights are no numbers after the third step."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            self.net[0].weight.data.fill_(torch.nan)


def test_a_run_that_diverges_keeps_the_scores_of_before(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="could not be differentiated anew"):
        store = fit(tmp_path, module=Diverges(OPTIMIZERS["adamw"]), online={"scores": ("dot", "update", "cosine")})
    assert store.manifest["steps"] == 3
    assert store.manifest["steps_left_out"] == [3, 4, 5]
    assert store.manifest["refreshes_failed"] == [3, 4, 5, 6]
    for kind in store.kinds:
        assert np.isfinite(store.matrix(kind)).all()


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([1, 1], "candidates: expected each example id once"),
        ({1: [1]}, r"candidates: expected a list for each query, found none for \[8, 15\]"),
        ({1: [1, 1], 8: [], 15: []}, "found some twice for query 1"),
    ],
)
def test_bad_candidates(candidates: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, online={"candidates": candidates})


def resumed(tmp_path: Path, asked: list[replay.Row] = ASKED, **online: Any) -> Any:
    """Train one epoch, save, and go on with other settings."""
    first = OnlineTracIn(DataLoader(ASKED, batch_size=2), tmp_path / "online", refresh_every_n_steps=1)  # type: ignore[arg-type]
    loader = DataLoader(EXAMPLES, batch_size=2)  # type: ignore[arg-type]
    made = trainer(tmp_path, callbacks=[first], max_epochs=1)
    made.fit(replay.Net(OPTIMIZERS["adamw"]), loader)
    made.save_checkpoint(tmp_path / "one.ckpt")
    online = {"refresh_every_n_steps": 1, **online}
    second = OnlineTracIn(DataLoader(asked, batch_size=2), tmp_path / "online", **online)  # type: ignore[arg-type]

    def go_on() -> ScoreStore:
        module = replay.Net(OPTIMIZERS["adamw"])
        trainer(tmp_path, callbacks=[second]).fit(module, loader, ckpt_path=tmp_path / "one.ckpt")
        return ScoreStore.open(tmp_path / "online")

    return go_on


@pytest.mark.parametrize(
    ("online", "asked", "message"),
    [
        ({"scores": ("dot", "cosine")}, ASKED, r"expected scores=\['dot'\], found \['dot', 'cosine'\]"),
        ({"parameters": ("net.*",)}, ASKED, r"found other ones: \['table.weight'\]"),
        ({"refresh_every_n_steps": 2}, ASKED, "expected refresh_every_n_steps=1, found 2"),
        ({}, ASKED[:2], r"it also has queries that were added later, \[15\]: expected all of them in queries=..."),
        ({}, [ASKED[0], {**ASKED[1], "query_id": 9}], r"in the same order, found other ids: \[8, 9, 15\]"),
        ({"candidates": [1, 8]}, ASKED, "expected candidates='all', found '"),
        ({}, ASKED[::-1], "found other ids: another order"),
    ],
)
def test_a_checkpoint_of_another_run_is_recognised(online: Any, asked: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        resumed(tmp_path, asked, **online)()


def test_a_checkpoint_whose_scores_are_gone_or_damaged_says_so(tmp_path: Path) -> None:
    go_on = resumed(tmp_path)
    [file] = (tmp_path / "online-state").glob("*.pt")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match=r"is damaged: its SHA-256 is not the one that the checkpoint has"):
        go_on()


def test_a_run_that_had_ended_goes_on(tmp_path: Path) -> None:
    """Its checkpoint was saved after fit; the scores of both parts are those of one run."""
    store = resumed(tmp_path)()
    whole = fit(tmp_path / "whole")
    np.testing.assert_allclose(store.matrix("dot"), whole.matrix("dot"), rtol=1e-9)
    assert store.manifest["complete"] is True
    assert (store.manifest["steps"], store.manifest["first_step"]) == (6, 0)


def test_resumed_without_scores_it_begins_anew_and_says_so(tmp_path: Path) -> None:
    loader = DataLoader(EXAMPLES, batch_size=2)  # type: ignore[arg-type]
    made = trainer(tmp_path, max_epochs=1)
    made.fit(replay.Net(OPTIMIZERS["adamw"]), loader)
    made.save_checkpoint(tmp_path / "one.ckpt")
    callback = OnlineTracIn(DataLoader(ASKED, batch_size=2), tmp_path / "online")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="scores begin at step 3, earlier steps are not in them"):
        trainer(tmp_path, callbacks=[callback]).fit(
            replay.Net(OPTIMIZERS["adamw"]), loader, ckpt_path=tmp_path / "one.ckpt"
        )
    rest = ScoreStore.open(tmp_path / "online-incomplete").manifest
    assert (rest["complete"], rest["first_step"], rest["steps"]) == (False, 3, 3)


def test_adding_queries_before_training_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="expected training to be under way"):
        OnlineTracIn().add_queries(DataLoader(ASKED))  # type: ignore[arg-type]

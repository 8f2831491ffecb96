"""Training of language models with OnlineTracIn is what it is without: weights, random numbers, hooks, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import replay, tiny
from helpers.language_runs import Module, fit, queries, rows, weights
from helpers.replay import OPTIMIZERS, trainer
from helpers.replay_runs import EXAMPLES


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


def test_the_users_checkpoint_holds_nothing_large(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    sizes = []
    for count in (3, 300):
        asked = replay.rows(count, "query_id", seed=1)
        callback = OnlineTracIn(DataLoader(asked, batch_size=100), tmp_path / str(count))  # type: ignore[arg-type]
        made = trainer(tmp_path, callbacks=[callback])
        made.fit(replay.Net(OPTIMIZERS["adamw"]), DataLoader(EXAMPLES, batch_size=2))  # type: ignore[arg-type]
        made.save_checkpoint(tmp_path / "saved.ckpt")
        state = torch.load(tmp_path / "saved.ckpt", weights_only=True)["callbacks"][callback.state_key]
        sizes.append(len(str(state)))
        assert not any(isinstance(value, Tensor) for value in state.values())
    assert sizes[1] < sizes[0] + 20 * 300  # but for the queries' ids

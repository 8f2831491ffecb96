"""The memory of scores: said before training, refused by name where it isn't there, and the same scores from a file."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from ftrace.callbacks import OnlineTracIn
from ftrace.online import memory_estimates, memory_needs
from ftrace.online.ledger import LedgerKeeper
from ftrace.online.memory_needs import MemoryNeeds, Place
from ftrace.online.run_memory import bytes_of, exhausted_place, is_out_of_memory
from ftrace.online.scoring import row_blocks
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer
from helpers.replay_runs import EXAMPLES, fit, queries

HELD = {"integration": "trapezoid", "momentum": "exact", "refresh_every_n_steps": 3}


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(EXAMPLES)


def net() -> replay.Net:
    return replay.Net(OPTIMIZERS["adamw"])


@pytest.mark.parametrize("online", [{}, {"breakdown": ("layer", "epoch")}, {"candidates": [1, 8]}, HELD])
def test_scores_from_a_file_are_those_from_memory(online: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 64)
    stores = [fit(tmp_path / place, net(), online={**online, "store": place}) for place in ("memory", "disk")]
    for file in stores[0].path.glob("*.npy"):
        np.testing.assert_array_equal(np.load(file), np.load(stores[1].path / file.name))
    in_memory, in_file = (store.manifest["memory"] for store in stores)
    assert in_memory["disk"]["scores in a file"] == in_file["memory"]["scores"] == 0
    assert in_memory["memory"]["scores"] == in_file["disk"]["scores in a file"] == in_file["disk"]["the store"]
    assert sorted(path.name for path in (tmp_path / "disk").iterdir() if path.name != "online-state") == ["online"]


def test_what_is_said_is_the_size_of_the_store(tmp_path: Path) -> None:
    online = {"breakdown": ("layer", "epoch"), "store": "memory"}
    store = fit(tmp_path, net(), online=online, max_epochs=3)
    said, files = store.manifest["memory"], [np.load(f) for f in store.path.glob("*.npy")]
    assert said["examples"] == len(EXAMPLES)
    assert said["memory"]["scores"] == sum(array.nbytes for array in files if array.dtype.kind == "f")
    assert said["memory"]["query gradients"] > 0
    few = fit(tmp_path / "few", net(), online=online, max_epochs=1, max_steps=2).manifest["memory"]
    assert few["examples"] == 4  # no more are seen in two steps of two


def test_it_is_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_needs, "NOTABLE_BYTES", 0)
    told: list[str] = []
    monkeypatch.setattr("ftrace.callbacks.lightning_loop.rank_zero_info", told.append)
    fit(tmp_path / "list", net())
    fit(tmp_path / "stream", net(), DataLoader(Stream(), batch_size=2))
    of_list, of_stream = (next(text for text in told if kind in text) for kind in ("8 examples", "each 1,000 examples"))
    assert of_list.startswith("OnlineTracIn: needs about ")
    assert "of memory (" in of_list
    assert "of disk (the store" in of_list
    assert of_list.index("free") < of_list.index("for 8 examples")
    assert "for each 1,000 examples" in of_stream


def refusal(tmp_path: Path, online: Any) -> str:
    module = net()
    before = {name: weights.clone() for name, weights in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"^OnlineTracIn: expected a run that fits, found that it needs") as raised:
        fit(tmp_path, module, online=online)
    assert all(torch.equal(weights, before[name]) for name, weights in module.state_dict().items())
    assert not (tmp_path / "online").exists()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_too_little_memory_is_refused_before_the_first_step_with_a_remedy_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_estimates, "_BYTES_OF_ID", 0)
    monkeypatch.setattr(memory_estimates, "RANGE_BYTES", 0)
    whole = fit(tmp_path / "whole", net(), online={"ledger": False}).manifest["memory"]["memory"]
    monkeypatch.setattr(memory_estimates, "free_memory", lambda: 1.0)
    assert "candidates=[...]" in refusal(tmp_path / "scores", {"store": "memory", "ledger": False})
    monkeypatch.setattr(memory_estimates, "free_memory", lambda: whole["total"] - whole["query gradients"] / 2)
    text = refusal(tmp_path / "gradients", {"ledger": False})
    assert "is for query gradients: project them with a smaller projection_side=K" in text
    fit(tmp_path / "projected", net(), online={"ledger": False, "projection_side": 1, "scores": ("dot",)})


def test_too_little_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_estimates, "free_disk", lambda folder: 100)
    assert "Most of the disk is for the store: keep scores of some examples" in refusal(tmp_path, {})


@pytest.mark.parametrize("held", [{}, HELD])
def test_memory_that_runs_out_is_one_line_and_the_scores_so_far_are_written(
    held: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 3 * 8 * 2)  # two examples

    class Full(row_blocks.BlockMemory):
        def __call__(self, shape: Any, dtype: torch.dtype) -> torch.Tensor:
            if self.in_memory >= 3 * 3 * 8 * 2:  # of three kinds, one block each
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 48 bytes")
            return super().__call__(shape, dtype)

    monkeypatch.setattr("ftrace.online.run_memory.BlockMemory", Full)
    online = OnlineTracIn(
        queries(), tmp_path / "online", scores=("dot", "update", "cosine"), **{"refresh_every_n_steps": 1, **held}
    )
    loader = DataLoader(EXAMPLES, batch_size=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"found none left at step \d") as raised:
        trainer(tmp_path, callbacks=[online]).fit(net(), loader)
    assert str(raised.value).count("\n") == 0
    store = ScoreStore.open(tmp_path / "online-incomplete")
    assert store.manifest["complete"] is False
    assert np.abs(store.matrix("cosine")).max() > 0


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory of the device"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
    ],
)
def test_the_place_that_runs_out_is_named(error: Exception, place: str) -> None:
    assert is_out_of_memory(error)
    needs = MemoryNeeds([Place(name, {"all": 1}, 2) for name in ("memory", "memory of the device", "disk")], None)
    assert needs.largest(exhausted_place(error)) == (place, "all")


LEDGERS: list[tuple[str, dict[str, Any], float]] = [
    ("adamw", {"scores": ("dot",)}, 1),
    ("adamw", {"scores": ("dot",), "projection_side": 2}, 0),
    ("adamw", {"scores": ("dot",), "integration": "trapezoid"}, 3),
    ("adamw", {"scores": ("update",)}, 4),
    ("adamw", {"scores": ("update",), "projection_side": 2}, 5),
    ("sgd", {"scores": ("update",)}, 1),
]


@pytest.mark.parametrize(("optimizer", "online", "copies"), LEDGERS)
def test_the_ledger_holds_as_many_copies_of_the_weights_as_are_said(
    optimizer: str, online: dict[str, Any], copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step, held = LedgerKeeper.after_step, []

    def measured(self: LedgerKeeper, *args: Any) -> None:
        sums = [(vectors.sums, vectors.late) for vectors in self.vectors.values()]
        copies = [self.weights.state()["weights"], self._weights_before]
        held.append(bytes_of([*copies, sums, self._decay_buffers, self._given_buffers]))
        after_step(self, *args)

    monkeypatch.setattr(LedgerKeeper, "after_step", measured)
    module = replay.Net(OPTIMIZERS[optimizer])
    store = fit(tmp_path, module, online={**online, "refresh_every_n_steps": 3}, max_epochs=2)
    of_weights = sum(p.numel() * p.element_size() for p in module.parameters())
    assert max(held) == store.manifest["memory"]["memory"]["ledger"] == copies * of_weights

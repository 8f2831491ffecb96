"""Training by itself and with each callback, and a comparison of all that there is afterwards, to the last bit."""

from __future__ import annotations

import copy
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from ftrace.callbacks import CheckpointSnapshots, GradientIndexWriter, OnlineTracIn
from ftrace.scores import ScoreStore
from helpers import own_parts
from helpers.own_parts import QUERIES, batches, losses


@dataclass(frozen=True)
class Case:
    """A module and how it is trained.

    Args:
        make: Makes the module; what it is to keep is named in its ``kept``.
        parameters: What the callbacks see.
        no_index: Whether a gradient index can't be written in such a loop.
    """

    make: Callable[[], Any]
    data: Callable[[], Any] = batches
    queries: Any = field(default_factory=lambda: QUERIES)
    losses: Any = losses
    settings: dict[str, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ("*",)
    no_index: bool = False


class Meter:
    """An average of the user's own."""

    def __init__(self) -> None:
        self.total, self.count, self.parts = 0.0, 0, [torch.zeros(1)]

    def update(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1
        self.parts[0] += 1
        self.parts.append(torch.tensor([value]))


class Endless:
    """An iterator of the user's own."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.position += 1
        return self.position


def online(case: Case, folder: Path) -> pl.Callback:
    asked = own_parts.loader(case.queries)
    return OnlineTracIn(asked, folder / "online", case.losses, parameters=case.parameters, refresh_every_n_steps=2)


def index(case: Case, folder: Path) -> pl.Callback:
    return GradientIndexWriter(
        folder / "index",
        parameters=case.parameters,
        layout="parameter",
        projection_side=2,
        preconditioner="none",
        dtype="float64",
    )


def snapshots(case: Case, folder: Path) -> pl.Callback:
    return CheckpointSnapshots(folder / "snapshots", every_n_steps=1)


def plain_value(value: Any) -> Any:
    """Something of plain lists, dictionaries and tensors that tells whether two kept things are the same."""
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.RandomState):
        return [plain_value(part) for part in value.get_state()]
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.float64))
    if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        return plain_value(value.state_dict())
    if isinstance(value, nn.Module):
        return dict(value.state_dict())
    if isinstance(value, dict):
        return [(key, plain_value(own)) for key, own in value.items()]
    if isinstance(value, Meter | Endless):
        return plain_value(vars(value))
    if isinstance(value, list | tuple | deque):
        return [plain_value(own) for own in value]
    if hasattr(value, "__next__"):
        return list(itertools.islice(copy.copy(value), 5))
    return value


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def after_training(case: Case, folder: Path, *callbacks: pl.Callback) -> dict[str, Any]:
    """All that there is when training has ended."""
    pl.seed_everything(7, verbose=False)
    module = case.make()
    trainer = own_parts.trainer(folder, callbacks, **case.settings)
    trainer.fit(module, own_parts.loader(case.data()))
    hooks = [
        (name, len(one._forward_hooks), len(one._forward_pre_hooks), len(one._backward_hooks), one.training)
        for name, one in module.named_modules()
    ]
    return {
        "weights and buffers": {**dict(module.named_parameters()), **dict(module.named_buffers())},
        "gradients": [parameter.grad for parameter in module.parameters() if parameter.grad is not None],
        "trainable": [parameter.requires_grad for parameter in module.parameters()],
        "modules": hooks,
        "attributes": sorted(set(vars(module)) - {"_forward_hooks_always_called"}),
        "optimizers": [plain_value(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "schedules": [plain_value(one.scheduler.state_dict()) for one in trainer.lr_scheduler_configs],
        "random": [torch.get_rng_state(), plain_value(np.random.get_state()), random.getstate()],
        "logged": dict(trainer.callback_metrics),
        "kept": {name: plain_value(getattr(module, name)) for name in getattr(module, "kept", ())},
    }


def hold_as_without(case: Case, folder: Path) -> None:
    """Check that everything is the same with each callback as without, and that nothing was left out of the scores."""
    alone = after_training(case, folder)
    for make in (online, index, snapshots):
        if make is index and case.no_index:
            continue
        with_callback = after_training(case, folder, make(case, folder))
        for name, value in alone.items():
            assert same(value, with_callback[name]), (make.__name__, name)
    store = ScoreStore.open(folder / "online")
    assert store.manifest["complete"]
    assert not store.manifest["rows"]["left_out"]

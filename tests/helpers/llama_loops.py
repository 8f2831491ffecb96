"""A random Llama of two layers, trained on the same batches by loops of several kinds, and what the replay says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from ftrace.callbacks import OnlineTracIn
from ftrace.online import trace
from ftrace.online.processes import num_processes, process_rank
from ftrace.scores import ScoreStore
from helpers import replay, tiny

KINDS = ("dot", "update", "cosine")
SETTINGS: dict[str, Any] = {"scores": KINDS, "refresh_every_n_steps": 1}
TOKENS = 5
RATE = 0.02


def rows(count: int, key: str, seed: int) -> list[replay.Row]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, tiny.VOCABULARY, (count, TOKENS), generator=generator)
    return [{"input_ids": row, "labels": row, key: 5 * i + 2} for i, row in enumerate(tokens)]


EXAMPLES = rows(14, "example_id", 1)
BATCHES = [EXAMPLES[i : i + 2] for i in range(0, len(EXAMPLES), 2)]  # seven: windows of three have an uneven last one
ASKED = rows(3, "query_id", 2)


def windows(accumulate: int) -> list[list[list[replay.Row]]]:
    """The batches of each step."""
    return [BATCHES[i : i + accumulate] for i in range(0, len(BATCHES), accumulate)]


def queries() -> DataLoader:
    return DataLoader(ASKED, batch_size=2)  # type: ignore[arg-type]


def losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """One loss a row: the summed negative log-likelihood of its tokens."""
    logits = model(batch["input_ids"])[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").sum(1)


def mean_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return losses(model, batch).mean()


class Llama(pl.LightningModule):
    """A Llama with its own optimizer, with adapters or without."""

    def __init__(self, *, adapters: bool = False, dtype: torch.dtype = torch.float64, drop: float = 0.0) -> None:
        super().__init__()
        self.model: Any = tiny.llama(dtype)
        if adapters:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", lora_dropout=drop)
            self.model = get_peft_model(self.model, config).to(dtype)
            for parameter in replay.trained(self.model).values():
                parameter.data += 0.2 * torch.randn_like(parameter)  # otherwise half of them have no gradient

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids).logits

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return losses(self, batch)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return mean_loss(self, batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(replay.trained(self).values(), lr=RATE, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def by_lightning(
    net: Llama, folder: Path, *, accumulate: int = 1, clip: float | None = None, **settings: Any
) -> ScoreStore:
    precision = settings.pop("precision", "32-true")
    callback = OnlineTracIn(queries(), folder, **{**SETTINGS, **settings})
    loader = [default_collate(batch) for batch in BATCHES]
    replay.trainer(
        folder.parent, precision=precision, max_epochs=1, callbacks=[callback], accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    ).fit(net, DataLoader(loader, batch_size=None))  # type: ignore[arg-type]  # fmt: skip
    return ScoreStore.open(folder)


def by_hand(net: Llama, folder: Path | None, *, accumulate: int = 1, clip: float | None = None, **settings: Any) -> Any:
    """With `trace` alone; not even with that if there is no folder. Processes share the rows of each batch."""
    [optimizer], [schedule] = net.configure_optimizers()
    run: Any = contextlib.nullcontext()
    if folder is not None:
        run = trace(net, optimizer, mean_loss, queries=queries(), output_dir=folder, **{**SETTINGS, **settings})
    with run:
        for window in windows(accumulate):
            for batch in (default_collate(batch[process_rank() :: num_processes()]) for batch in window):
                if folder is None:
                    with torch.autocast("cpu", torch.bfloat16, enabled=settings.get("precision") == "bf16-mixed"):
                        loss = mean_loss(net, batch)
                    (loss / accumulate).backward()
                else:
                    run.backward(run.loss(batch) / accumulate)
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule["scheduler"].step()
    return None if folder is None else ScoreStore.open(folder)


def by_fabric(
    net: Llama, folder: Path | None, fabric: Fabric | None = None, *, accumulate: int = 1, clip: float | None = None,
    before_step: Callable[[int], None] | None = None, training_loss: Any = mean_loss, stop: int | None = None,
    checkpoint: Path | None = None, resume: bool = False, **settings: Any,
) -> Any:  # fmt: skip
    """With Fabric; the rows of each batch are shared out among processes.

    Args:
        folder: Where the store is written; None: not traced.
        before_step: Called with the index of each step, before its gradient is clipped.
        stop: The step at which the checkpoint is saved; one step later the run is killed.
        resume: Whether it goes on from the checkpoint.
    """
    fabric = Fabric(accelerator="cpu", devices=1) if fabric is None else fabric
    is_sharded = isinstance(fabric.strategy, ModelParallelStrategy)
    model: Any = fabric.setup_module(net) if is_sharded else None
    [optimizer], [schedule] = net.configure_optimizers()
    if is_sharded:
        optimizer = fabric.setup_optimizers(optimizer)
    else:
        model, optimizer = fabric.setup(net, optimizer)
    run: Any = contextlib.nullcontext()
    if folder is not None:
        run = trace(
            model, optimizer, training_loss, fabric=fabric, queries=queries(), query_losses=losses, output_dir=folder,
            **{**SETTINGS, **settings},
        )  # fmt: skip
    state = {"model": model, "optimizer": optimizer, "schedule": schedule["scheduler"], "trace": run, "step": 0}
    if resume:
        state["step"] = fabric.load(checkpoint, {k: v for k, v in state.items() if k != "step"}, strict=False)["step"]
    steps = _shared_out(windows(accumulate)[state["step"] :], fabric)
    loader = fabric.setup_dataloaders(steps, use_distributed_sampler=False)
    with run:
        for step, window in enumerate(loader, start=state["step"]):
            for index, batch in enumerate(window):
                with fabric.no_backward_sync(model, enabled=index + 1 < len(window) and not is_sharded):
                    if folder is None:
                        fabric.backward(training_loss(model, batch) / accumulate)
                    else:
                        run.backward(run.loss(batch) / accumulate, model=model)
            if before_step is not None:
                before_step(step)
            if clip is not None:
                fabric.clip_gradients(model, optimizer, max_norm=clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule["scheduler"].step()
            if step == stop:
                fabric.save(checkpoint, {**state, "step": step + 1})
            elif stop is not None and step == stop + 1 and not resume:
                raise KeyboardInterrupt
    return None if folder is None else ScoreStore.open(folder)


def _shared_out(steps: Sequence[list[list[replay.Row]]], fabric: Fabric) -> DataLoader:
    """This process's rows of each step's batches."""
    share = slice(fabric.global_rank, None, fabric.world_size)
    made = [[default_collate(batch[share]) for batch in window] for window in steps]
    return DataLoader(made, batch_size=None, sampler=range(len(made)))  # type: ignore[arg-type]


def replayed(net: Llama, accumulate: int = 1, clip: float | None = None) -> tuple[list[replay.Step], dict[str, Any]]:
    """The steps of the replay, which trains the net, and by kind the scores of each example, ``[Q]``."""
    steps = replay.train(net, windows(accumulate), ASKED, clip=clip, accumulate=accumulate)
    return steps, {kind: replay.scores(kind, net, steps, ASKED) for kind in KINDS}


def matrix(store: ScoreStore, scores: dict[int, Tensor]) -> np.ndarray:
    """Scores by example, in the order of a store's."""
    return np.stack([scores[int(example)].numpy() for example in store.example_ids])


def gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().clone() for p in net.parameters() if p.grad is not None])


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])

"""Small models with adapters of PEFT in float64, their batches, and what plain autograd says of a training of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.online import PlainTrace, trace
from ftrace.scores import ScoreStore
from helpers import tiny
from helpers.own_parts import per_example

TOKENS, COUNT, RATE = 6, 4, 0.1
Batch = dict[str, Tensor]
Switch = Callable[[Any, int], None]  # (model, step), called before the step


def lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})


def adapted(base: nn.Module, config: peft.PeftConfig, *, jitter: float = 0.2) -> Any:
    """Wrap a model, in float64.

    Args:
        base: The model.
        config: Of its adapters.
        jitter: What their parameters are moved by at random: where B is 0, half of the gradients vanish.
    """
    return jittered(peft.get_peft_model(base, config), jitter)  # type: ignore[arg-type]


def jittered(model: Any, size: float = 0.2) -> Any:
    torch.manual_seed(9)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn_like(parameter)
    return model


def two(*, both: bool = False, seed: int = 9) -> Any:
    """A Llama with the adapters "default" and "b" of other ranks on other layers, one or both of them active."""
    model = peft.get_peft_model(tiny.llama(), lora(target_modules=["q_proj", "down_proj"]))  # type: ignore[arg-type]
    model.add_adapter("b", lora(r=3, target_modules=["q_proj", "v_proj"]))
    model.base_model.set_adapter(["default", "b"])
    jittered(model)
    if not both:
        model.set_adapter("default")
    return model


def batches(count: int, key: str = "example_id", seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(2, tiny.VOCABULARY, (COUNT, TOKENS), generator=generator) for _ in range(count)]
    return [{"input_ids": of, "labels": of, key: torch.arange(COUNT) + COUNT * index} for index, of in enumerate(rows)]


[ASKED] = batches(1, "query_id", 2)
QUERIES = [{name: values[i] for name, values in ASKED.items()} for i in range(COUNT)]


def losses(model: Any, batch: Batch) -> Tensor:
    """``[B]``; virtual tokens come before the batch's own."""
    logits = model(input_ids=batch["input_ids"]).logits[:, -TOKENS:-1]
    return F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").sum(1)


def mean_loss(model: Any, batch: Batch) -> Tensor:
    return losses(model, batch).mean()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE)


@dataclass
class Training:
    """A loop of one step a batch.

    Args:
        model: It is trained.
        data: Batches.
        switch: What is done to the model before each step.
        make_optimizer: Makes its optimizer.
        first: The number of the first step.
    """

    model: Any
    data: Sequence[Batch]
    switch: Switch = lambda model, step: None
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd
    first: int = 0
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = self.make_optimizer(self.model)
        self.model.train()
        torch.manual_seed(7)

    def plain(self) -> Any:
        """Train without tracing."""
        for step, batch in enumerate(self.data, self.first):
            self.switch(self.model, step)
            self.optimizer.zero_grad()
            mean_loss(self.model, batch).backward()
            self.optimizer.step()
        return self.model

    def by_hand(self) -> Tensor:
        """Train with SGD, and compute TracIn by plain autograd, one example at a time, ``[N, Q]``."""
        rows = []
        for step, batch in enumerate(self.data, self.first):
            self.switch(self.model, step)
            self.model.eval()
            asked = per_example(self.model, list(losses(self.model, ASKED)))
            self.model.train()
            seed = torch.get_rng_state()
            of_batch = []
            for example in range(COUNT):  # each draws the dropout that the batch draws
                torch.set_rng_state(seed)
                of_batch.append(losses(self.model, batch)[example] / COUNT)
            rows.append(RATE * per_example(self.model, of_batch) @ asked.T)
            torch.set_rng_state(seed)
            self.optimizer.zero_grad()
            mean_loss(self.model, batch).backward()
            self.optimizer.step()
        return torch.cat(rows)

    def traced(self, folder: Path, on_step: Callable[[int, PlainTrace], None] | None = None, **settings: Any) -> Any:
        """Train and trace; returns the store."""
        options: dict[str, Any] = {
            "queries": QUERIES, "query_losses": losses, "precision": "64-true", "refresh_every_n_steps": 1, **settings,
        }  # fmt: skip
        with trace(self.model, self.optimizer, mean_loss, output_dir=folder, **options) as run:
            for step, batch in enumerate(self.data, self.first):
                self.switch(self.model, step)
                self.optimizer.zero_grad()
                run.backward(run.loss(batch))
                self.optimizer.step()
                if on_step is not None:
                    on_step(step, run)
        return ScoreStore.open(folder)


def have_equal_weights(model: nn.Module, other: nn.Module) -> bool:
    """Bit by bit, buffers too."""
    weights, others = model.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def scores(store: ScoreStore, kind: str = "dot") -> Tensor:
    """``[N, Q]``."""
    return torch.from_numpy(store.matrix(kind).copy())

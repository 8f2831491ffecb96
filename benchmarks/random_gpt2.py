"""A GPT-2 of random weights that learns random tokens, its sizes, and the rates of the machine that trains it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from ftrace.data import WithExampleIds


@dataclass(frozen=True)
class Setting:
    """What is trained, and on what.

    Args:
        layers: Transformer blocks.
        width: Their width.
        vocabulary: Tokens that there are; the embedding is tied to the head.
        batch_size: B.
        tokens: T, of examples and queries alike.
        queries: Q.
        precision: As Lightning names it.
        device: "cpu" or "cuda".
    """

    layers: int = 6
    width: int = 256
    vocabulary: int = 4096
    batch_size: int = 32
    tokens: int = 64
    queries: int = 32
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    device: str = "cpu"


class LanguageModel(pl.LightningModule):
    """Next-token prediction, as anybody would write it."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=setting.vocabulary,
            n_embd=setting.width,
            n_layer=setting.layers,
            n_head=max(1, setting.width // 64),
            n_positions=setting.tokens,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        self.model = GPT2LMHeadModel(config)

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """One loss a row, in nats."""
        logits = self.model(batch["input_ids"], use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").sum(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean over tokens."""
        return self.losses(batch).mean() / (batch["input_ids"].shape[1] - 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def random_tokens(setting: Setting, count: int, seed: int) -> Tensor:
    """Rows of random tokens, ``[count, T]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, setting.vocabulary, (count, setting.tokens), generator=generator)


def random_rows(setting: Setting, count: int, key: str, seed: int) -> DataLoader:
    """Batches of random tokens with ids."""
    rows = WithExampleIds(TensorDataset(random_tokens(setting, count, seed)), key=key, names=("input_ids",))
    return DataLoader(rows, batch_size=setting.batch_size)


def query_pass(setting: Setting, repeats: int = 5) -> float:
    """Seconds of a forward and backward pass of the queries without any weight gradient."""
    torch.manual_seed(0)
    module = LanguageModel(setting).to(setting.device).eval().requires_grad_(False)
    ids = random_tokens(setting, setting.queries, seed=1)
    seconds = []
    for _ in range(repeats):
        start = _now(setting)
        for batch in ids.to(setting.device).split(setting.batch_size):
            embedded = module.model.transformer.wte(batch).requires_grad_()
            logits = module.model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
            loss = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="sum")
            torch.autograd.grad(loss, embedded)
        seconds.append(_now(setting) - start)
    return statistics.median(seconds)


def matmul_rate(setting: Setting, side: int = 2048, repeats: int = 7) -> float:
    """Operations a second of a large matrix product."""
    dtype = torch.float64 if setting.precision == "64-true" else torch.float32
    square = torch.ones(side, side, dtype=dtype, device=setting.device)
    seconds = []
    for _ in range(repeats):
        start = _now(setting)
        torch.mm(square, square)
        seconds.append(_now(setting) - start)
    return 2 * side**3 / statistics.median(seconds)


def weight_shapes(setting: Setting) -> list[tuple[int, int]]:
    """Inputs and outputs of each matrix product with a weight."""
    width = setting.width
    block = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    return [*block * setting.layers, (width, setting.vocabulary)]


def _now(setting: Setting) -> float:
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()

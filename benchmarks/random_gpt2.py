"""A GPT-2 of random weights that learns random tokens, its sizes, and the rates of the machine that trains it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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


def make_module(setting: Setting) -> LanguageModel:
    """The model on its device, the same at each call."""
    torch.manual_seed(0)
    with torch.device(setting.device):
        return LanguageModel(setting)


def random_tokens(setting: Setting, count: int, seed: int) -> Tensor:
    """Rows of random tokens, ``[count, T]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, setting.vocabulary, (count, setting.tokens), generator=generator)


def random_rows(setting: Setting, count: int, key: str, seed: int) -> DataLoader:
    """Batches of random tokens with ids."""
    rows = WithExampleIds(TensorDataset(random_tokens(setting, count, seed)), key=key, names=("input_ids",))
    return DataLoader(rows, batch_size=setting.batch_size)


def query_pass(setting: Setting, repeats: int = 5, lowest: int = 0) -> float:
    """Seconds of a forward and backward pass of the queries without any weight gradient.

    Args:
        repeats: Passes, of which the median is taken.
        lowest: The block that the backward pass ends at.
    """
    module = make_module(setting).eval().requires_grad_(False)
    ids = random_tokens(setting, setting.queries, seed=1).to(setting.device)
    block = module.model.transformer.h[lowest]
    begins: list[Tensor] = []

    def begin(block: Any, args: tuple[Tensor, ...], kwargs: Any) -> Any:
        begins[:] = [args[0].detach().requires_grad_()]
        return (begins[0], *args[1:]), kwargs

    handle = block.register_forward_pre_hook(begin, with_kwargs=True)
    mixed = setting.precision == "bf16-mixed"

    def run() -> None:
        for batch in ids.split(setting.batch_size):
            with torch.autocast(setting.device, torch.bfloat16, enabled=mixed):
                logits = module.model(batch, use_cache=False).logits[:, :-1]
                loss = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="sum")
            torch.autograd.grad(loss, begins)

    seconds = seconds_of(run, setting.device, repeats)
    handle.remove()
    return seconds


def matmul_rate(setting: Setting, repeats: int = 7) -> float:
    """Operations a second of a large matrix product.

    On a GPU it is one in the precision of the passes, so large that launching it takes no time beside it.
    """
    on_gpu = setting.device == "cuda"
    side, dtype = (8192 if on_gpu else 2048), torch.float32
    if setting.precision == "64-true":
        dtype = torch.float64
    elif setting.precision == "bf16-mixed" and on_gpu:
        dtype = torch.bfloat16
    square = torch.rand(side, side, device=setting.device).to(dtype)  # of zeros and ones a GPU is faster
    return 2 * side**3 / seconds_of(lambda: torch.mm(square, square), setting.device, repeats)


def weights_of(setting: Setting) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each matrix product with a weight, by the weight's name; the head's is the last."""
    width = setting.width
    block: dict[str, tuple[int, int]] = {}
    for layer in range(setting.layers):
        of_layer = {
            "attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width), "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }  # fmt: skip
        block |= {f"model.transformer.h.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    return {**block, "model.lm_head.weight": (width, setting.vocabulary)}


def weight_shapes(setting: Setting) -> list[tuple[int, int]]:
    """Inputs and outputs of each matrix product with a weight; the last is the head's."""
    return list(weights_of(setting).values())


def seconds_of(work: Callable[[], object], device: str, repeats: int) -> float:
    """Median seconds of some work, waited for on a GPU."""
    seconds = []
    for _ in range(repeats):
        start = _now(device)
        work()
        seconds.append(_now(device) - start)
    return statistics.median(seconds)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()

"""What tracing adapters costs, beside training them, and beside training all weights.

    OMP_NUM_THREADS=1 python benchmarks/adapters.py
    OMP_NUM_THREADS=1 python benchmarks/adapters.py --setting.layers 6 --setting.width 256 --rounds 3

A Llama of random weights learns random tokens with AdamW in a plain loop: all of its weights, adapters of LoRA on all
linear layers, adapters of DoRA; each plain, and traced by ``ftrace.online.trace``. All ways take turns in one process;
a ratio is of two turns of the same round, and the table has its median and its range over rounds. The first steps of a
turn, with their rehearsals and the first refresh, are timed apart. Times are of the processor, so that other work on a
shared machine counts less; with one thread and nothing else, they are those of the clock. Peak memory is of a process
of its own (Linux only).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from peft import LoraConfig, get_peft_model
from process_peaks import in_own_process, resident_peak_gib
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from ftrace.online import trace


@dataclass(frozen=True)
class Setting:
    """What is trained, and on what.

    Args:
        layers: Transformer blocks.
        width: Their width; the MLP is three times as wide.
        vocabulary: Tokens that there are.
        batch_size: Rows of a batch.
        tokens: Tokens of a row, of examples and queries alike.
        queries: Number of queries.
        rank: Rank of the adapters.
        mlp: Width of the MLP, in widths of the block.
        query_heads: Heads of queries for each head of keys and values.
        tied: Whether the head's weight is the embedding's.
        dtype: Of the weights; adapters are in float32 in any case.
        device: "cpu" or "cuda", where times are those of the clock.
    """

    layers: int = 4
    width: int = 128
    vocabulary: int = 1024
    batch_size: int = 16
    tokens: int = 32
    queries: int = 16
    rank: int = 8
    mlp: int = 3
    query_heads: int = 1
    tied: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Way:
    """A way of training.

    Args:
        name: In the table.
        kind: What is trained.
        plain: The way that it is compared with, beside the training of all weights.
        options: Of ``trace``; None: it isn't traced.
    """

    name: str
    kind: str
    plain: str
    options: dict[str, Any] | None = None


_EXACT = {"scores": ("dot", "cosine")}
_PROJECTED = {"scores": ("dot", "cosine"), "projection_side": 16, "refresh_every_n_steps": 10}
_LEARNING = {"scores": ("learning",), "projection_side": 16, "refresh_every_n_steps": 10}
_STANDARD = Setting()
WAYS = (
    Way("all weights", "all", "all weights"),
    Way("all weights, projected, refresh 10", "all", "all weights", _PROJECTED),
    Way("LoRA", "lora", "LoRA"),
    Way("LoRA, exact, refresh 1", "lora", "LoRA", {**_EXACT, "refresh_every_n_steps": 1}),
    Way("LoRA, exact, refresh 10", "lora", "LoRA", {**_EXACT, "refresh_every_n_steps": 10}),
    Way("LoRA, projected, refresh 10", "lora", "LoRA", _PROJECTED),
    Way("LoRA, learning, refresh 10", "lora", "LoRA", _LEARNING),
    Way("DoRA", "dora", "DoRA"),
    Way("DoRA, exact, refresh 10", "dora", "DoRA", {**_EXACT, "refresh_every_n_steps": 10}),
)


def make_model(setting: Setting, kind: str) -> nn.Module:
    """A model of random weights; ``kind`` says what of it is trained."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.width,
        intermediate_size=setting.mlp * setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=max(1, setting.width // 64),
        num_key_value_heads=max(1, setting.width // 64 // setting.query_heads),
        tie_word_embeddings=setting.tied,
        max_position_embeddings=setting.tokens,
        use_cache=False,
    )
    with torch.device(setting.device):
        model = LlamaForCausalLM(config).to(getattr(torch, setting.dtype))
    if kind == "all":
        return model
    adapters = LoraConfig(r=setting.rank, target_modules="all-linear", use_dora=kind == "dora", task_type="CAUSAL_LM")
    return get_peft_model(model, adapters)


def on_device(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    """The batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """One loss a row, in nats."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").sum(1)


def mean_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean over tokens."""
    return losses(model, batch).mean() / (batch["input_ids"].shape[1] - 1)


def random_rows(setting: Setting, count: int, key: str, seed: int) -> list[dict[str, Any]]:
    """Rows of random tokens, with ids."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, setting.vocabulary, (count, setting.tokens), generator=generator)
    return [{"input_ids": row, key: index} for index, row in enumerate(tokens)]


def train(setting: Setting, way: Way, steps: int, warm_up: int) -> tuple[float, float]:
    """Train; mean seconds of the steps after the first ones, and those of the very first."""
    model = make_model(setting, way.kind)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batches = DataLoader(random_rows(setting, steps * setting.batch_size, "example_id", 0), setting.batch_size)  # type: ignore[arg-type, var-annotated]
    times = []

    def look() -> None:
        if setting.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() if setting.device == "cuda" else time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        if way.options is None:
            for batch in batches:
                look()
                optimizer.zero_grad()
                mean_loss(model, on_device(batch, setting.device)).backward()
                optimizer.step()
            look()
        else:
            queries = DataLoader(random_rows(setting, setting.queries, "query_id", 1), setting.batch_size)  # type: ignore[arg-type, var-annotated]
            with trace(
                model,
                optimizer,
                mean_loss,
                queries=queries,
                query_losses=losses,
                output_dir=Path(folder) / "online",
                **way.options,
            ) as run:
                for batch in batches:
                    look()
                    optimizer.zero_grad()
                    run.backward(run.loss(on_device(batch, setting.device)))
                    optimizer.step()
                look()
    return (times[-1] - times[warm_up]) / (steps - warm_up), times[1] - times[0]


def _peak_gib(setting: Setting, way: Way, queue: Any) -> None:
    train(setting, way, steps=3, warm_up=0)
    queue.put(resident_peak_gib())


def peak_gib(setting: Setting, way: Way) -> float:
    """Peak memory of a process that trains that way, in GiB."""
    return in_own_process(_peak_gib, setting, way)


def _range(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main(setting: Setting = _STANDARD, rounds: int = 5, steps: int = 10, memory: bool = True) -> None:
    """Measure and print a table.

    Args:
        setting: What is trained.
        rounds: How often each way takes its turn.
        steps: Steps of a turn that are timed, a multiple of 10.
        memory: Measure peak memory, too.
    """
    turns: dict[str, list[float]] = {way.name: [] for way in WAYS}
    firsts: dict[str, list[float]] = {way.name: [] for way in WAYS}
    for done in range(rounds):
        for way in WAYS:
            step, first = train(setting, way, steps + 10, warm_up=10)
            turns[way.name].append(step)
            firsts[way.name].append(first)
            print(f"round {done}, {way.name}: {1e3 * step:.1f} ms a step, {1e3 * first:.0f} the first", flush=True)
    table = Table(
        "training", "trained", "ms a step", "of plain", "of all weights, plain", "first step, of plain", "GiB"
    )
    for way in WAYS:
        trained = sum(p.numel() for p in make_model(setting, way.kind).parameters() if p.requires_grad)
        seconds = turns[way.name]
        plain, whole = turns[way.plain], turns["all weights"]
        first = statistics.median(firsts[way.name]) / statistics.median(plain)
        table.add_row(
            way.name,
            f"{trained:,}",
            f"{1e3 * statistics.median(seconds):.0f}",
            _range([mine / other for mine, other in zip(seconds, plain, strict=True)]),
            _range([mine / other for mine, other in zip(seconds, whole, strict=True)]),
            f"{first:.1f}",
            f"{peak_gib(setting, way):.2f}" if memory else "",
        )
    console = Console(width=150)
    console.print(setting, table, f"medians and ranges of {rounds} rounds of {steps} steps")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

"""Peak memory of training a model of SmolLM2-135M's shape, plain and traced, each in a process of its own.

    python benchmarks/pretrained_memory.py

A random Llama of 30 layers of width 576 with 49,152 tied embeddings learns in float32, by AdamW with clipping, in
batches of 8 rows of 25 tokens; 32 queries are traced. The peak is of memory that is the process's alone (RssAnon),
looked at every few milliseconds, with PyTorch and the model in it.

Limit: at most 1.3 times plain training with ``projection_side=16`` and the ledger.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from ftrace.callbacks import OnlineTracIn
from ftrace.index import readable

VOCABULARY = 49_152
WAYS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "dot": {"scores": ("dot",)},
    "dot, no ledger": {"scores": ("dot",), "ledger": False},
    "dot, no self-check": {"scores": ("dot",), "self_check": False},
    "learning": {"scores": ("learning",)},
}


class Learner(pl.LightningModule):
    """A random Llama."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=576, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
            intermediate_size=1536, vocab_size=VOCABULARY, tie_word_embeddings=True, max_position_embeddings=512,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config)

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """The losses of examples or queries."""
        logits = self.model(input_ids=batch["input_ids"], use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").sum(1)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Their mean."""
        return self.example_losses(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def _rows(count: int, key: str, length: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(length)
    return [{"input_ids": torch.randint(VOCABULARY, (length,), generator=generator), key: i} for i in range(count)]


def _own_memory() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def _measure(options: dict[str, Any] | None, layers: int, steps: int, refresh: int, queue: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    peak, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.003):
            peak[0] = max(peak[0], _own_memory())

    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[pl.Callback] = []
        if options is not None:
            queries: Any = DataLoader(_rows(32, "query_id", 20), batch_size=8)  # type: ignore[arg-type]
            settings = {"projection_side": 16, "refresh_every_n_steps": refresh, **options}
            callbacks = [OnlineTracIn(queries, Path(folder, "online"), **settings)]
        trainer = pl.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=callbacks,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        )  # fmt: skip
        watch = threading.Thread(target=look)
        watch.start()
        begun = time.perf_counter()
        trainer.fit(Learner(layers), DataLoader(_rows(8 * steps, "example_id", 25), batch_size=8))  # type: ignore[arg-type]
        ended.set()
        watch.join()
    queue.put((peak[0], time.perf_counter() - begun))


def main(ways: list[str] | None = None, layers: int = 30, steps: int = 12, refresh: int = 10) -> None:
    """Measure and print a table.

    Args:
        ways: Some of the ways, "plain" among them; default: all.
        layers: The number of layers.
        steps: The number of training steps.
        refresh: The number of steps between refreshes of the query gradients.
    """
    table = Table("way", "peak", "of plain", "seconds")
    context = multiprocessing.get_context("spawn")
    plain = 0
    for way in WAYS if ways is None else ways:
        queue = context.Queue()
        process = context.Process(target=_measure, args=(WAYS[way], layers, steps, refresh, queue))
        process.start()
        peak, seconds = queue.get(timeout=7200)
        process.join()
        plain = peak if way == "plain" else plain
        table.add_row(way, readable(peak), f"{peak / plain:.2f}" if plain else "", f"{seconds:.0f}")
    Console(width=120, markup=False).print(table)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

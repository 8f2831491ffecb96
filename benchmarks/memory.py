"""What OnlineTracIn says that it will take, against what it takes: peak memory beyond the same training without it.

    python benchmarks/memory.py

A small classifier learns for two epochs, in a process of its own for each way: without OnlineTracIn, with scores in
memory, and with scores in a file. The peak is of memory that is the process's alone (RssAnon), looked at every few
milliseconds, so pages of mapped files, which the system can take back, don't count. The second epoch
ends with a checkpoint.

Limit: the peak is at most 1.5 times what is said, where at least 100 MB are said.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ftrace.callbacks import OnlineTracIn
from ftrace.data import WithExampleIds
from ftrace.index import readable

WIDTH, CLASSES = 8, 3


@dataclass(frozen=True)
class Case:
    """A size of scores, and options of OnlineTracIn."""

    examples: int
    queries: int
    batch_size: int
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options)


_TRAPEZOID = (("integration", "trapezoid"), ("scores", ("dot", "update")), ("refresh_every_n_steps", 10))
CASES = (
    Case(20_000, 1_000, 1000),
    Case(130_000, 1_000, 1000),
    Case(130_000, 1_000, 1000, (("scores", ("dot", "update", "cosine")),)),
    Case(20_000, 1_000, 500, (("breakdown", ("layer", "epoch")),)),
    Case(20_000, 1_000, 500, _TRAPEZOID),
    Case(20_000, 1_000, 500, (*_TRAPEZOID, ("momentum", "exact"))),
    Case(1_000_000, 100, 10_000),
)


class Classifier(pl.LightningModule):
    """A network of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, CLASSES))

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """The losses of examples or queries."""
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["y"], reduction="none")

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Their mean."""
        return self.example_losses(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def _rows(count: int, key: str) -> WithExampleIds:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, WIDTH, generator=generator), torch.randint(CLASSES, (count,), generator=generator)
    return WithExampleIds(TensorDataset(x, y), key=key, names=("x", "y"))


def _own_memory() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def _measure(case: Case, store: str | None, folder: str, queue: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    callbacks: list[pl.Callback] = []
    if store is not None:
        queries = DataLoader(_rows(case.queries, "query_id"), batch_size=256)
        callbacks = [OnlineTracIn(queries, f"{folder}/{store}", store=store, **dict(case.options))]  # type: ignore[arg-type]
        callbacks.append(ModelCheckpoint(f"{folder}/{store}-checkpoints", every_n_epochs=2))
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=store is not None, callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(_rows(case.examples, "example_id"), batch_size=case.batch_size, shuffle=True)
    before, peak, ended = _own_memory(), [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.003):
            peak[0] = max(peak[0], _own_memory() - before)

    watch = threading.Thread(target=look)
    watch.start()
    trainer.fit(Classifier(), loader)
    ended.set()
    watch.join()
    said = 0
    if store is not None:
        said = json.loads(Path(folder, store, "manifest.json").read_text())["memory"]["memory"]["total"]
    queue.put((peak[0], said))


def main(folder: str | None = None) -> None:
    """Measure and print a table.

    Args:
        folder: Where stores are written; default: a temporary folder.
    """
    columns = ("examples", "queries", "options", "scores in", "said", "peak beyond plain training", "peak / said")
    table = Table(*columns)
    context = multiprocessing.get_context("spawn")
    for case in CASES:
        found = {}
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            for store in (None, "memory", "disk"):
                queue = context.Queue()
                process = context.Process(target=_measure, args=(case, store, temporary, queue))
                process.start()
                found[store] = queue.get(timeout=3000)
                process.join()
        for store in ("memory", "disk"):
            peak, said = found[store][0] - found[None][0], found[store][1]
            table.add_row(
                f"{case.examples:,}", f"{case.queries:,}", str(case), store, readable(said), readable(peak),
                f"{peak / said:.2f}",
            )  # fmt: skip
        Console(stderr=True).print(f"{case.examples:,} x {case.queries:,} {case}: {found}", markup=False)
    Console(width=150, markup=False).print(table)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

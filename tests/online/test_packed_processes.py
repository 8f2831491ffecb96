"""Packed rows in two processes, with another number of documents in each: the scores of one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ftrace.online import trace
from ftrace.scores import ScoreStore
from helpers import tiny, warm_python
from helpers.packed import Corpus

ROWS = [[[5, 2], [3, 2, 4]], [[9], [1, 4, 3]]]  # of each process
QUERIES = [{"input_ids": torch.tensor([2, 5, 7, 3, 11, 4]), "query_id": 0}]


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """One for each row."""
    labels = batch.get("labels", batch["input_ids"])[:, 1:]
    logits = model(input_ids=batch["input_ids"], position_ids=batch.get("position_ids"), use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1)


def of_process(batch: dict[str, Tensor], rows: list[list[int]], rank: int) -> dict[str, Tensor]:
    row = {name: value[rank : rank + 1] for name, value in batch.items() if name != "example_id"}
    first = sum(map(len, rows[:rank]))
    return {**row, "example_id": batch["example_id"][first : first + len(rows[rank])]}


def train(rank: int, processes: int, folder: str) -> None:
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    net: Any = tiny.llama(num_hidden_layers=1)
    model = DistributedDataParallel(net) if processes > 1 else net
    optimizer, corpus = torch.optim.SGD(net.parameters(), lr=0.1), Corpus()
    with trace(
        model, optimizer, lambda model, batch: losses(model, batch).mean(), queries=DataLoader(QUERIES),  # type: ignore[arg-type]
        query_losses=losses, output_dir=f"{folder}/scores-{processes}", precision="64-true", refresh_every_n_steps=1,
    ) as run:  # fmt: skip
        for rows in ROWS:
            batch = corpus.pack(rows)
            run.backward(run.loss(batch if processes == 1 else of_process(batch, rows, rank)))
            optimizer.step()
            optimizer.zero_grad()
    if processes > 1:
        dist.destroy_process_group()


def test_two_processes_have_the_scores_of_one(tmp_path: Path) -> None:
    train(0, 1, str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = warm_python.run(__file__, tmp_path, env=environment, has_trained=True)
    assert done.returncode == 0, done.stderr[-2500:]
    one, two = (ScoreStore.open(tmp_path / f"scores-{processes}") for processes in (1, 2))
    assert two.manifest["processes"] == 2
    assert two.example_ids.tolist() == one.example_ids.tolist() == list(range(sum(len(r) for of in ROWS for r in of)))
    np.testing.assert_allclose(two.matrix("dot"), one.matrix("dot"), rtol=1e-9, atol=1e-14)
    assert np.abs(one.matrix("dot")).max() > 0


if __name__ == "__main__":  # what has used threads, as the tests have, can't fork
    mp.start_processes(train, (2, sys.argv[1]), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]

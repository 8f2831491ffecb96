"""`ftrace.online.trace` around DistributedDataParallel: two processes, and the scores of one."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, default_collate

from ftrace.online import trace
from ftrace.scores import ScoreStore
from helpers import warm_python

ASKED = [{"x": torch.linspace(-1, 1, 3).double() * (i + 1), "query_id": i} for i in range(3)]
EXAMPLES = [{"x": torch.linspace(1, 2, 3).double() * (i - 3), "example_id": i} for i in range(8)]
WINDOWS = 3 * [[EXAMPLES[:4], EXAMPLES[4:]], [EXAMPLES[4:]]]  # batches whose gradients are accumulated


def losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(batch["x"]).square().sum(1)


def train(rank: int, processes: int, folder: str) -> None:
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    torch.manual_seed(0)
    net: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model: Any = DistributedDataParallel(net) if processes > 1 else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    with trace(
        model, optimizer, lambda model, batch: losses(model, batch).mean(), queries=DataLoader(ASKED, batch_size=2),  # type: ignore[arg-type]
        query_losses=losses, output_dir=f"{folder}/scores-{processes}", scores=("dot", "update"), precision="64-true",
        refresh_every_n_steps=1,
    ) as run:  # fmt: skip
        for window in WINDOWS:
            for step in window:
                is_synchronized = processes == 1 or step is window[-1]
                with nullcontext() if is_synchronized else model.no_sync():
                    run.backward(run.loss(default_collate(step[rank::processes])) / len(window))
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
    for kind in ("dot", "update"):
        np.testing.assert_allclose(two.matrix(kind), one.matrix(kind), rtol=1e-9, atol=1e-14)
        assert np.abs(one.matrix(kind)).max() > 0


if __name__ == "__main__":  # what has used threads, as the tests have, can't fork
    mp.start_processes(train, (2, sys.argv[1]), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]

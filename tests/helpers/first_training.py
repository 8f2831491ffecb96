"""A traced training, after which a process has loaded and set up what others need hundreds of milliseconds for.

:mod:`helpers.warm_python` forks those that train from one that has done this. One thread and one process: what has used
threads can't fork others that train.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import conftest  # noqa: F401
import torch
from torch.utils.data import DataLoader

from ftrace.callbacks import GradientIndexWriter, OnlineTracIn
from helpers import replay
from helpers.replay import OPTIMIZERS


def train() -> None:
    """Train for a few steps, score the examples, and write an index."""
    torch.set_num_threads(1)
    asked, examples = replay.rows(3, "query_id", seed=1), replay.rows(4, "example_id")
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        online = OnlineTracIn(
            DataLoader(asked, batch_size=2),  # type: ignore[arg-type]
            Path(folder, "online"), scores=("dot", "update", "cosine"), refresh_every_n_steps=1,
        )  # fmt: skip
        index = GradientIndexWriter(Path(folder, "index"), parameters=("table.weight",), layout="parameter")
        trainer = replay.trainer(Path(folder), callbacks=[online, index], max_epochs=1)
        trainer.fit(replay.Net(OPTIMIZERS["adamw"]), DataLoader(examples, batch_size=2))  # type: ignore[arg-type]

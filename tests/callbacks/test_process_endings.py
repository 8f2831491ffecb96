"""Several processes end together, with the scores so far: at a signal to one of them, and after an error in one."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from ftrace.scores import ScoreStore
from helpers import script, warm_python


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("loop", "ending", "codes"),
    [
        ("lightning", "SIGTERM-1", [143, 143]),
        ("lightning", "SIGINT-0", [1, 1]),  # as Lightning ends at Ctrl-C
        ("lightning", "error-0", [1, 1]),
        ("lightning", "error-1", [1, 1]),
        ("plain", "SIGTERM-0", [143, 143]),
        ("plain", "error-1", [1, 1]),
    ],
)
def test_all_processes_end_with_the_scores_so_far(loop: str, ending: str, codes: list[int], tmp_path: Path) -> None:
    port = free_port()
    commands = [[script("ending_processes"), tmp_path, port, rank, loop, ending] for rank in (0, 1)]
    done = warm_python.run_together(commands, timeout=60, has_trained=True)
    assert [process.returncode for process in done] == codes, [process.stderr[-1500:] for process in done]
    store = ScoreStore.open(tmp_path / "scores-incomplete")
    assert store.manifest["steps"] in (4, 5)
    if ending.startswith("error"):
        assert "an error of its own" in done[int(ending[-1])].stderr
    elif loop == "lightning":  # all have stopped at the same place, so a checkpoint is whole
        checkpoint = torch.load(tmp_path / "saved.ckpt", weights_only=True)
        (state,) = (entry for key, entry in checkpoint["callbacks"].items() if key.startswith("OnlineTracIn"))
        assert len(state["files"]) == 2, json.dumps(state, default=str)

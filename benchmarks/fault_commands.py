"""Commands that `faults.py` disturbs: what each writes and reads, on a run that is made in seconds."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

CONFIG = Path(__file__).parents[1] / "configs" / "synth_demo.yaml"
RUN = Path("runs") / "synth_demo" / "version_0"
SMALLER = [
    "--data.init_args.synth.num_entities=24", "--data.init_args.synth.num_relations=2",
    "--data.init_args.synth.num_facts=8", "--data.init_args.synth.num_test_utterances=4",
    "--model.init_args.learning_rate=0.2", "--model.init_args.warmup_steps=5", "--trainer.max_epochs=20",
    "--trainer.enable_progress_bar=false", "--trace=null",
]  # fmt: skip
_IMPORTS = [
    "datasets", "jsonargparse", "lightning.pytorch.cli", "matplotlib.figure", "pyarrow.parquet", "rich.console",
    "rich.progress", "safetensors.torch", "torch.distributed.fsdp", "torchmetrics.functional",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.t5.modeling_t5",
]  # fmt: skip


_EACH_TIME = ("seconds", "peak_memory_bytes", "memory", "digest", "files")  # of manifests: another number each time


@dataclass(frozen=True)
class Command:
    """A command over the run.

    Args:
        name: What it is called in the table.
        line: What follows ``ftrace``; paths start from the folder that holds ``runs``.
        writes: The file or folder that it writes.
        reads: Those that it reads, whose damage it must find.
    """

    name: str
    line: str
    writes: str = ""
    reads: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows ``ftrace``, word by word."""
        return tuple(shlex.split(self.line))


DATA, SNAPSHOTS, SCORES = "data_cache", f"{RUN}/snapshots", f"{RUN}/online"
FIT = shlex.join(["fit", "--config", str(CONFIG), *SMALLER])
_METHOD = f"attribute --run {RUN} --queries all --method"
_COUNTERFACTUAL = f"counterfactual {SCORES} --subsets 3 --leave_out_k 2 --leave_out_queries 2 --queries all"
COMMANDS = [
    Command("fit", FIT, "runs/synth_demo/version_1", (DATA,)),
    Command("synth", "synth --output_path made --num_facts 2000 --num_test_utterances 500", "made"),
    Command("attribute bm25", f"{_METHOD} bm25 --output_dir bm25", "bm25", (DATA,)),
    Command("attribute tracin", f"{_METHOD} tracin --output_dir tracin", "tracin", (DATA, SNAPSHOTS)),
    Command(
        "attribute trackstar",
        f"{_METHOD} trackstar --method.preconditioner none --output_dir trackstar",
        "trackstar",
        (DATA, SNAPSHOTS),
    ),
    Command("index", f"index --run {RUN} --projection_side 4 --output_dir made", "made", (DATA, SNAPSHOTS)),
    Command("search", "search --index index --queries all --output_file found.jsonl", "found.jsonl", (DATA, "index")),
    Command("causal-trace", f"causal-trace --run {RUN} --queries all --output_dir made", "made", (DATA, SNAPSHOTS)),
    Command("tail-patch", f"tail-patch {SCORES} -k 2 --queries all --output_dir made", "made", (SCORES, SNAPSHOTS)),
    Command("counterfactual", f"{_COUNTERFACTUAL} --output_dir made", "made", (SCORES, DATA)),
    Command("evaluate", f"evaluate {SCORES} --queries all --output_dir made", "made", (SCORES, DATA)),
    Command("report", f"report {RUN} --out made.html", "made.html", (SCORES,)),
    Command("ledger", f"ledger {SCORES} --output made.png", "made.png", (f"{SCORES}/ledger.parquet",)),
    Command("learned-when", f"learned-when {SCORES} --queries all --output made.png", "made.png", (SCORES,)),
    Command("show", f"show {SCORES} --query 0", reads=(SCORES,)),
    Command("ask", f"ask {RUN} 'where was it made?' --index index", reads=("index", SNAPSHOTS)),
]


def make_base(folder: Path) -> None:
    """Make the run, and what commands read besides it."""
    folder.mkdir(parents=True)
    for line in (
        FIT,
        f"index --run {RUN} --output_dir index --projection_side 4",
        f"evaluate {SCORES} --queries learned --published false",
    ):
        ended = Started(Command("", line), folder).wait(600)
        if ended.code:
            raise RuntimeError(f"ftrace {line}: {ended.errors[-3000:]}")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    errors: str


class Started:
    """A command in a process of its own, forked from one that has imported what takes seconds.

    Args:
        command: The command.
        folder: Its working directory.
    """

    def __init__(self, command: Command, folder: Path) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(_IMPORTS)
        self._files = [folder.parent / f"{folder.name}.{name}-{os.urandom(4).hex()}" for name in ("out", "err")]
        self.process = context.Process(
            target=_become, args=(command.arguments, str(folder), [str(file) for file in self._files])
        )
        self.process.start()

    def wait(self, seconds: float) -> Ended:
        """Wait for the end, and return how it was; code 124 if it took longer and had to be killed."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            code = 124
        self.kill()
        output, errors = (file.read_text(errors="replace") if file.exists() else "" for file in self._files)
        for file in self._files:
            file.unlink(missing_ok=True)
        return Ended(code, output, errors)

    def signal(self, number: int) -> None:
        """Send a signal to the command, but not to what it has started."""
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Kill the command, and what it has started."""
        try:
            assert self.process.pid is not None
            os.killpg(self.process.pid, 9)
        except (ProcessLookupError, PermissionError):
            pass
        self.process.join()


def _become(arguments: tuple[str, ...], folder: str, files: list[str]) -> None:
    import sys

    os.setsid()
    os.chdir(folder)
    for number, name in zip((1, 2), files, strict=True):
        opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
    os.environ["COLUMNS"] = "200"
    sys.argv = ["ftrace", *arguments]
    import torch

    torch.set_num_threads(1)
    from ftrace.cli import main

    sys.exit(main(list(arguments)))


def outcome(folder: Path, name: str) -> dict[str, Any]:
    """Read all that a command has written, as leaves that can be compared: arrays, numbers, texts.

    Args:
        folder: The folder in which it ran.
        name: What it writes.
    """
    files = [file for file in (folder / name, *sorted((folder / name).rglob("*"))) if file.is_file()] if name else []
    return {f"{file.relative_to(folder)}{key}": value for file in files for key, value in _leaves(file)}


def _leaves(file: Path) -> list[tuple[str, Any]]:
    kind = file.suffix
    if kind == ".npy":
        return [("", np.load(file))]
    if kind == ".json":
        return _flat("", json.loads(file.read_text()))
    if kind == ".parquet":
        return [("", pq.read_table(file.absolute()).to_pydict())]
    if kind == ".safetensors":
        with safe_open(file, "np") as opened:
            return [(f":{name}", opened.get_tensor(name)) for name in opened.keys()]  # noqa: SIM118
    return [("", file.read_bytes())]


def _flat(place: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        kept = [key for key in value if key not in _EACH_TIME]
        return [leaf for key in kept for leaf in _flat(f"{place}.{key}", value[key])]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [leaf for number, item in enumerate(value) for leaf in _flat(f"{place}.{number}", item)]
    return [(place, value)]


def same(one: Any, other: Any) -> bool:
    """Tell whether two leaves hold the same, but for rounding."""
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.shape == other.shape
            and one.dtype == other.dtype
            and (bool((one == other).all()) if one.dtype.kind not in "fc" else _close(one, other))
        )
    if isinstance(one, float) and isinstance(other, float):
        return _close(np.array([one]), np.array([other]))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    largest = float(np.nanmax(np.abs(one), initial=0.0))
    return bool(np.allclose(one, other, rtol=1e-5, atol=1e-6 * largest, equal_nan=True))


def copy(base: Path, folder: Path) -> Path:
    """Copy the run, so that a command may be disturbed on it."""
    shutil.copytree(base, folder, symlinks=True)
    return folder

"""Python processes that start at once: forks of one that has already imported what takes seconds.

Most of the time that a short command takes in a test goes into importing torch, Lightning and transformers. One process
imports them, and nothing of ftrace, and is forked for each command. A command still is a process of its own, with its
own arguments, environment, working directory, output and exit code, and imports ftrace itself. The process that is
forked runs no code of the tests: one that has used threads couldn't fork others that train.

Scripts that train are forked from a process that has trained already: see :mod:`helpers.first_training`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TextIO

Done = subprocess.CompletedProcess[str]
_ENVIRONMENT = dict(os.environ)  # before any test changes it
SLOW_IMPORTS = (
    "datasets",
    "jsonargparse",
    "lightning.pytorch.cli",
    "matplotlib.axes",
    "matplotlib.figure",
    "pyarrow.parquet",
    "rich.console",
    "rich.progress",
    "safetensors.torch",
    "torch.distributed.fsdp",
    "torchmetrics.functional",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.t5.modeling_t5",
)


def run(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300,
    has_trained: bool = False,
) -> Done:  # fmt: skip
    """Do what ``python ARGUMENTS`` does, and return its exit code and output.

    Args:
        *arguments: A script or ``-m MODULE`` or ``-c CODE``, and what follows.
        cwd: The working directory; default: the current one.
        env: The environment; default: the current one. What torch and the like read when they are imported must be as
            it is here.
        timeout: Seconds after which everything that was started is killed.
        has_trained: Whether the process has imported ftrace and trained with it before, which saves half a second in it
            and a quarter of one in each process that it forks.

    Raises:
        subprocess.TimeoutExpired: If it took longer.
    """
    return run_together([arguments], cwd, env, timeout, has_trained)[0]


def run_together(
    commands: Sequence[Sequence[object]],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    has_trained: bool = False,
) -> list[Done]:
    """Run several commands at the same time; see :func:`run`."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        orders = [
            {
                "arguments": [str(argument) for argument in arguments],
                "cwd": str(cwd or Path.cwd()),
                "env": dict(os.environ if env is None else env),
                "outputs": [f"{folder}/{number}.out", f"{folder}/{number}.err"],
            }
            for number, arguments in enumerate(commands)
        ]
        server.stdin.write(json.dumps([has_trained, orders]) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], timeout)[0]:
            os.killpg(server.pid, signal.SIGKILL)
            server.communicate()
            atexit.unregister(server.communicate)
            _server.cache_clear()
            raise subprocess.TimeoutExpired(str(commands), timeout)
        codes = json.loads(server.stdout.readline())
        outputs = [[Path(file).read_text() for file in order["outputs"]] for order in orders]
    return [
        subprocess.CompletedProcess(order["arguments"], code, *output)
        for order, code, output in zip(orders, codes, outputs, strict=True)
    ]


@cache
def _server() -> subprocess.Popen[str]:
    """Start the process that is forked. It ends when this one does."""
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT,
        start_new_session=True,
    )  # fmt: skip
    atexit.register(server.communicate)  # closes its standard input, and waits
    return server


def _serve(asked: TextIO, answers: TextIO) -> dict[str, Any] | None:
    """Fork for each order. Returns an order in the processes that are to carry it out, and None at the end."""
    trained: tuple[TextIO, TextIO] | None = None
    for line in asked:
        has_trained, orders = json.loads(line)
        if has_trained:
            if trained is None:
                (read, ask), (answer, write) = os.pipe(), os.pipe()
                if os.fork() == 0:
                    os.close(ask)  # else it would never find the end of what is asked
                    os.close(answer)
                    _train()
                    return _serve(os.fdopen(read), os.fdopen(write, "w"))
                os.close(read)
                os.close(write)
                trained = os.fdopen(ask, "w"), os.fdopen(answer)
            print(json.dumps([False, orders]), file=trained[0], flush=True)
            print(trained[1].readline(), end="", file=answers, flush=True)
            continue
        children = []
        for order in orders:
            child = os.fork()
            if child == 0:
                return order
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), file=answers, flush=True)
    return None


def _train() -> None:
    """Do what :mod:`helpers.first_training` does, and leave nothing else behind."""
    sys.path.append(str(Path(__file__).parents[1]))
    importlib.import_module("helpers.first_training").train()
    gc.collect()
    gc.freeze()


def _become(order: Mapping[str, Any]) -> None:
    """Make this process one that was started with the order's settings."""
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in order["outputs"]]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    first, *rest = order["arguments"]
    beside = str(Path.cwd()) if first in ("-m", "-c") else str(Path(first).resolve().parent)
    sys.path[:1] = [beside, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if "OMP_NUM_THREADS" in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if first == "-m":
        sys.argv = [first, *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = [first, *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    gc.disable()
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # what was imported needn't be looked through again in each process
    gc.enable()
    os.fsync = os.fstat  # type: ignore[assignment]  # as in conftest.py
    order = _serve(sys.stdin, sys.stdout)
    if order is not None:
        _become(order)

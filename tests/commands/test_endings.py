"""How commands end: exit codes, and one line that says what is wrong, or what is kept after a signal."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from ftrace.commands.endings import NOTHING_KEPT, kept, run_command, say_kept
from helpers import warm_python


def ends_with(error: BaseException) -> Callable[[], None]:
    """Work that raises an error in ftrace's own code."""
    namespace: dict[str, Any] = {"error": error, "__name__": "ftrace.somewhere"}
    exec(compile("def work():\n    raise error", "/ftrace/somewhere.py", "exec"), namespace)
    work: Callable[[], None] = namespace["work"]
    return work


@pytest.fixture(autouse=True)
def signals_are_not_ignored() -> Iterator[None]:
    """As they are in jobs in the background and under nohup, where commands leave them ignored."""
    before = {signum: signal.signal(signum, signal.default_int_handler) for signum in (signal.SIGINT, signal.SIGHUP)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("k: expected\n  1,\n\nfound 0"), "ftrace show: k: expected 1, found 0"),
        (KeyError("store: no query 7; the store has 3"), "ftrace show: store: no query 7; the store has 3"),
        (FileNotFoundError(2, "No such file", "x"), "ftrace show: x: No such file"),
        (EOFError(), "ftrace show: EOFError"),
        (MemoryError("Unable to allocate 4 TiB"), "ftrace show: out of memory. Unable to allocate 4 TiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "ftrace show: out of memory. Default"),
        (RecursionError("maximum recursion depth exceeded"), "ftrace show: expected input that is not nested so"),
        (SafetensorError("header too large"), "ftrace show: header too large"),
        (yaml.YAMLError("mapping values are not allowed here"), "ftrace show: mapping values are not allowed here"),
        (MisconfigurationException("No supported gpu backend found!"), "ftrace show: No supported gpu backend"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_input_may_raise_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("show", ends_with(error)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("error", [KeyError("kinds"), TypeError("unsupported"), AssertionError()], ids=repr)
def test_a_fault_of_ours_keeps_its_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("show", ends_with(error)) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_in_the_code_of_users_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def training_step() -> None:
        raise ValueError("my own mistake")

    assert run_command("fit", training_step) == 1
    assert "in training_step" in capsys.readouterr().err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_one_line_and_its_exit_code(signum: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with kept(lambda: "Half is kept in x;\nthe same command goes on."):
            os.kill(os.getpid(), signum)
            time.sleep(10)

    before = signal.getsignal(signum)
    assert run_command("index", work) == 128 + signum
    expected = f"ftrace index: interrupted ({signum.name}). Half is kept in x; the same command goes on.\n"
    assert capsys.readouterr().err == expected
    assert signal.getsignal(signum) == before


def test_what_was_kept_within_a_block_isnt_said_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with kept("within"):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    assert run_command("show", work) == 143
    assert capsys.readouterr().err.endswith(f"{NOTHING_KEPT}\n")


def test_an_error_that_an_interruption_causes_is_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        say_kept("All is kept.")
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise RuntimeError("a worker was killed")

    assert run_command("study", work) == 143
    assert capsys.readouterr().err == "ftrace study: interrupted (SIGTERM). All is kept.\n"


class Signalled(LightningModule):
    """A pass that gets a signal, as Lightning's own handlers would swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum
        self.steps = 0

    def predict_dataloader(self) -> Any:
        return DataLoader(range(1000), batch_size=None)  # type: ignore[arg-type]

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        if batch_idx == 3:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_pass_under_lightning(
    signum: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Signalled(signum)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    assert run_command("attribute", lambda: trainer.predict(module, return_predictions=False)) == 128 + signum
    assert module.steps == 4
    assert "Traceback" not in capsys.readouterr().err


def test_a_second_signal_ends_at_once_and_a_closed_pipe_in_silence() -> None:
    twice = (
        "import os, signal, time\nfrom ftrace.commands.endings import run_command\n"
        "def work():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(30)\n"
        "raise SystemExit(run_command('show', work))"
    )
    closed = (
        "import os, sys\nfrom ftrace.commands.endings import run_command\n"
        "read, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
        "raise SystemExit(run_command('show', lambda: print('a row')))"
    )
    second, pipe = warm_python.run_together([["-c", twice], ["-c", closed]], timeout=60)
    assert second.returncode == -signal.SIGTERM
    assert (pipe.returncode, pipe.stderr) == (141, "")


def test_training_says_in_one_line_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftrace.commands import fit

    monkeypatch.setattr(sys, "argv", ["ftrace"])
    for options, words in (
        (["--trainer.max_epoch=3"], "max_epoch"),
        (["--trainer.max_epochs=x"], "max_epochs"),
        (["--model.init_args.answer=one"], "answer"),
        (["--trainer.devices=two"], "int > 0"),
    ):
        assert fit.main(["fit", "--config", "synth_demo", *options]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
        assert len(lines) == 1
        assert lines[0].startswith("ftrace fit: ")
        assert words in lines[0]

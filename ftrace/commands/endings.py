"""How commands end: with an exit code, and one line on stderr unless all went well.

Bad input is exit code 2. A signal is 128 plus its number, as shells have it: 130 for SIGINT (Ctrl-C), 143 for SIGTERM.
The line then says what is kept, and how to go on. A fault of ftrace itself, or of a user's code, keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from jsonargparse import ArgumentError

from ftrace.commands.readable_errors import readable
from ftrace.files.digests import finish_background_checks
from ftrace.launched_processes import is_first_process
from ftrace.shown_text import one_line

NOTHING_KEPT = "Nothing was written."
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_OF_INPUT = (ArgumentError, ValueError, OSError, EOFError, RecursionError)
# Of libraries that not every command imports, by package and class.
_OF_INPUT_BY_NAME = {
    "_pickle.UnpicklingError", "ftrace.SelfCheckError", "lightning.MisconfigurationException",
    "pickle.UnpicklingError", "pyarrow.ArrowException", "safetensors.SafetensorError",
    "safetensors_rust.SafetensorError", "yaml.YAMLError", "zipfile.BadZipFile", "zlib.error",
}  # fmt: skip

_kept: str | Callable[[], str] = NOTHING_KEPT


class Interrupted(SystemExit):
    """The end of a command by a signal.

    A SystemExit, so that libraries that turn a KeyboardInterrupt into something else, such as Lightning, let it pass
    after they have cleaned up, and so that no handler of errors takes it for one.

    Args:
        signum: The signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


def say_kept(text: str | Callable[[], str]) -> None:
    """Say from here on, if the command is interrupted, what is kept and how to go on.

    Args:
        text: One or more sentences; or a function that returns them when it comes to that.
    """
    global _kept
    _kept = text


@contextmanager
def kept(text: str | Callable[[], str]) -> Iterator[None]:
    """Say what is kept if the command is interrupted within the block.

    Args:
        text: As :func:`say_kept` takes it.
    """
    before = _kept
    say_kept(text)
    yield
    say_kept(before)  # not after an exception, which may be the interruption


def run_command(name: str, work: Callable[[], Any]) -> int:
    """Do what a command does, and return its exit code.

    Args:
        name: The command's name, for the line on stderr.
        work: What it does.
    """
    say_kept(NOTHING_KEPT)
    with _Signals() as signals:
        try:
            work()
            sys.stdout.flush()
            finish_background_checks()
        except BrokenPipeError:  # of "ftrace show | head": nobody reads what is left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + getattr(signal, "SIGPIPE", 13)
        except BaseException as error:  # what a signal interrupts may raise any error of its own
            if signals.received is None:
                return _end_by(name, error)
    if signals.received is None:
        return 0
    if is_first_process():  # which speaks for all
        text = _kept if isinstance(_kept, str) else _kept()
        _say(name, f"interrupted ({signals.received.name}). {text}")
    return 128 + signals.received


class _Signals:
    """The signals that end a command, turned into :class:`Interrupted`; a second one ends the process at once.

    Attributes:
        received: The first signal; None without one.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for each in _SIGNALS:
                if signal.getsignal(each) not in (signal.SIG_IGN, None):  # nohup and shells ignore some for their jobs
                    self._before[each] = signal.signal(each, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.received = signal.Signals(signum)
        raise Interrupted(signum)


def _end_by(name: str, error: BaseException) -> int:
    """Say in a line what is wrong with the input; show any other error with its traceback."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        raise error
    message = _message(error)
    if message is None or _passes_through_code_of_users(error):
        traceback.print_exception(error)
        return 1
    _say(name, message)
    return 2


def _message(error: BaseException) -> str | None:
    """Return what an error says to users; None if it says nothing to them."""
    text = str(error)
    if isinstance(error, KeyError):  # whose text is the repr of its argument
        text = str(error.args[0]) if error.args else ""
        return text if " " in text else None
    is_of_torch = type(error).__name__ == "OutOfMemoryError" and not isinstance(error, ValueError)
    if isinstance(error, MemoryError) or "can't allocate memory" in text or is_of_torch:
        return f"out of memory. {text}".strip()
    if isinstance(error, RecursionError):
        return f"expected input that is not nested so deeply ({text})"
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}" for kind in type(error).__mro__}
    if isinstance(error, _OF_INPUT) or names & _OF_INPUT_BY_NAME:
        return readable(error)
    return None


def _passes_through_code_of_users(error: BaseException) -> bool:
    """Tell whether an error was raised in, or below, code that is neither ftrace's nor an installed package's."""
    if error.__cause__ is not None and _passes_through_code_of_users(error.__cause__):
        return True
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, file = str(frame.f_globals.get("__name__")), frame.f_code.co_filename
        is_installed = {"site-packages", "dist-packages"} & set(file.split(os.sep)) or file.startswith(
            _STANDARD_LIBRARY
        )
        is_ours = module.partition(".")[0] in ("ftrace", "__main__", "__mp_main__")
        if os.path.isabs(file) and not is_installed and not is_ours:
            return True
    return False


_STANDARD_LIBRARY = os.path.dirname(os.__file__)


def _say(name: str, message: str) -> None:
    print(f"ftrace {name}".strip() + f": {one_line(message)}", file=sys.stderr, flush=True)

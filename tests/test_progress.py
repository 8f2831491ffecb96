"""Progress on stderr: lines in a pipe, rarely; a bar on a terminal; nothing by other processes or within another."""

from __future__ import annotations

import io
import sys

import pytest

from ftrace import progress as module
from ftrace.progress import progress, track


class Clock:
    """A clock that goes on by a second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", Clock())


def test_a_pipe_gets_a_line_now_and_then_and_ever_more_rarely(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(100), "rows")) == list(range(100))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "rows: 5 of 100 (5%) after 5 s",
        "rows: 15 of 100 (15%) after 15 s",
        "rows: 35 of 100 (35%) after 35 s",
        "rows: 75 of 100 (75%) after 75 s",
    ]


def test_a_short_pass_says_nothing_and_one_of_unknown_length_counts(capsys: pytest.CaptureFixture[str]) -> None:
    list(track(range(4), "rows"))
    assert capsys.readouterr().err == ""
    list(track(iter(range(6)), "rows", done=10))
    assert capsys.readouterr().err == "rows: 15 after 5 s\n"


def test_only_the_outer_of_two_passes_and_the_first_of_several_processes_show_anything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress("outer", 3) as advance:
        list(track(range(50), "inner"))
        for _ in range(9):
            advance()
    assert "inner" not in capsys.readouterr().err
    list(track(range(9), "again"))
    assert "again" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    list(track(range(50), "rows"))
    assert capsys.readouterr().err == ""


def test_a_pass_that_fails_or_is_left_makes_room_for_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    for item in track(range(50), "left"):
        if item == 2:
            break
    with pytest.raises(RuntimeError), progress("fails"):
        raise RuntimeError
    list(track(range(6), "next"))
    assert "next" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_whose_title_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    list(track(range(3), "rows [bold]of[/] \x1b]0;title\x07mine"))
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "rows [bold]of[/]" in shown
    assert "\x1b]0;" not in shown
    assert "3/3" in shown

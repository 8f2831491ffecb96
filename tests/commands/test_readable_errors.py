"""Messages of the option parser are one line that says which option, what was expected and what was found."""

from __future__ import annotations

from typing import Literal

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from ftrace.commands.readable_errors import readable


class Method:
    def __init__(self, side: int | None = None, weight: Literal["mean", "sum"] = "mean") -> None:
        self.side, self.weight = side, weight


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--share", type=float | None)
    parser.add_argument("--which", type=Literal["last", "first"] | int, default="last")
    parser.add_argument("--sizes", type=list[int])
    parser.add_argument("--only", type=Literal["this"])
    parser.add_argument("--method", type=Method | None)
    return parser


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count=1.5"], "count: expected a whole number, found 1.5"),
        (["--count=true"], "count: expected a whole number, found true"),
        (["--count=two"], "count: expected a whole number, found 'two'"),
        (["--count="], "count: expected a whole number, found ''"),
        (["--method=Mehtod"], "method: expected a class path or null, found 'Mehtod'"),
        (["--count=[1]"], "count: expected a whole number, found [1]"),
        (["--share=big"], "share: expected a number or null, found 'big'"),
        (["--which=middle"], "which: expected one of 'last', 'first' or a whole number, found 'middle'"),
        (["--only=that"], "only: expected 'this', found 'that'"),
        (["--sizes=5"], "sizes: expected a list, found 5"),
        (["--method.side=big"], "method.side: expected a whole number or null, found 'big'"),
        (["--method.weight=max"], "method.weight: expected one of 'mean', 'sum', found 'max'"),
        (["--method.wight=sum"], "method: expected a known option, found 'wight'. See --help"),
        (["--cuont=1"], "expected known options, found --cuont=1. See --help"),
        (["--count"], "count: expected one argument"),
        ([], "expected count, found none"),
    ],
    ids=str,
)
def test_messages_of_the_parser(options: list[str], message: str, parser: ArgumentParser) -> None:
    given = [f"--method={__name__}.Method", *options] if options and options[0].startswith("--method") else options
    with pytest.raises(ArgumentError) as raised:
        parser.parse_args(given)
    assert readable(raised.value) == message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("k: expected 1,\n  found 2"), "k: expected 1, found 2"),
        (KeyError("no such name"), "no such name"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "a.json: No such file or directory"),
        (RecursionError(), "RecursionError"),
        (ValueError("\x1b[2Jgone \ud800"), r"\x1b[2Jgone \ud800"),
        (
            ValueError("can't read it ([Errno 2] No such file or directory)"),
            "can't read it (No such file or directory)",
        ),
        (ValueError("a" * 5000 + "b" * 5000), "a" * 500 + " ... " + "b" * 500),
    ],
)
def test_other_errors_are_one_line(error: Exception, message: str) -> None:
    assert readable(error) == message

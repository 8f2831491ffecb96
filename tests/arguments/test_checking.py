"""Arguments are held against annotations: what is right passes, and what isn't is named in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from ftrace.arguments import Count, Name, Positive, PositiveNumber, Share, Within, checked, hold

Ids = list[int | str] | Mapping[int | str, Sequence[int | str]] | None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, Positive), (None, Positive | None), (0.5, Share), (1, Share), ("", str), (b"x", Any), ([1, "a"], Ids),
        ({1: ["a"]}, Ids), (len, Callable[..., Any]), (torch.zeros(2), torch.Tensor), ((1, 2), tuple[int, int]),
        (range(3), Sequence[int]), ({1, 2}, Iterable[int]), ("last", Literal["last"] | int), (int, type[int]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_right_is_passed_as_it_is(value: Any, kind: Any) -> None:
    held = hold("it", value, kind)
    assert held is value or held == value
    assert type(held) is type(value)


@pytest.mark.parametrize(
    ("value", "kind", "same"),
    [
        (np.int64(3), Positive, 3), (torch.tensor(3), Positive, 3), (np.float32(0.5), Share, 0.5),
        (np.bool_(True), bool, True), ([np.int64(1), 2], Sequence[int], [1, 2]), ("a/b", Path, Path("a/b")),
    ],
    ids=str,
)  # fmt: skip
def test_numbers_of_other_libraries_become_plain_ones(value: Any, kind: Any, same: Any) -> None:
    held = hold("it", value, kind)
    assert (held, type(held)) == (same, type(same))


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (0, Positive, "it: expected at least 1, found 0"),
        (-1, Count | None, "it: expected at least 0, found -1"),
        (True, Positive, "it: expected a whole number of at least 1, found True"),
        (np.bool_(True), int, "it: expected a whole number, found np.True_"),
        (np.float64(1.5), Positive | None, "it: expected a whole number of at least 1 or none, found np.float64(1.5)"),
        (torch.tensor(1.5), int, "it: expected a whole number, found tensor(1.5000)"),
        (float("nan"), Share, "it: expected a number from 0 to 1, found nan"),
        (float("inf"), PositiveNumber | None, "it: expected a number above 0, found inf"),
        (0.0, PositiveNumber, "it: expected a number above 0, found 0.0"),
        (10**400, float, "it: expected a number, found 1000000"),
        ("no", bool, "it: expected true or false, found 'no'"),
        (" ", Name, "it: expected a text that is not empty, found ' '"),
        ("a\0b", Name, r"it: expected a text that is not empty, found 'a\x00b'"),
        ("\ud800", str, r"it: expected UTF-8, found '\ud800'"),
        ("dot", Sequence[str], "it: expected a list (each a text), found 'dot'"),
        (["dot", 3], Sequence[str], "it[1]: expected a text, found 3"),
        ([1, 1.5], Ids, "it[1]: expected a whole number or a text, found 1.5"),
        ({1: ["a", None]}, Ids, "it[1][1]: expected a whole number or a text, found none"),
        ({1.5: []}, Ids, "it[1.5]: expected a whole number or a text, found 1.5"),
        ([[1, 2], [3, -4]], Sequence[Sequence[Count]], "it[1][1]: expected at least 0, found -4"),
        ("maybe", Literal["yes", "no"], "it: expected one of ['yes', 'no'], found 'maybe'"),
        (3, Callable[..., Any], "it: expected a function, found 3"),
        ([3], torch.Tensor, "it: expected a Tensor, found [3]"),
        (len, Within, "it: expected a Within, found <built-in"),
        ((1,), tuple[int, int], "it: expected a list (each a whole number), found (1,)"),
        ("x" * 500, int, f"it: expected a whole number, found '{'x' * 79}"),
        ("a\nb", int, r"it: expected a whole number, found 'a\nb'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        hold("it", value, kind)
    assert str(raised.value).startswith(message)
    assert len(str(raised.value)) < 300


@checked
def best(k: Positive, *names: str, largest: bool = True, **others: Count) -> tuple[Any, ...]:
    return k, names, largest, others


@checked
@dataclass(frozen=True)
class Settings:
    window: Positive = 100

    def __post_init__(self) -> None:
        assert self.window > 0


class OwnSettings(Settings):
    pass


def test_functions_keep_their_ways_of_calling() -> None:
    assert best(np.int64(2), "a", "b", largest=False, c=3) == (2, ("a", "b"), False, {"c": 3})
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'k'"):
        best()
    with pytest.raises(ValueError, match="names: expected a text"):
        best(1, "a", 2)
    with pytest.raises(ValueError, match="c: expected at least 0"):
        best(1, c=-1)


def test_settings_are_held_before_they_are_made_and_when_they_are_changed() -> None:
    assert Settings(np.int64(3)) == OwnSettings(3).__class__.__base__(3)
    with pytest.raises(ValueError, match="window: expected at least 1"):
        replace(Settings(), window=0)
    with pytest.raises(ValueError, match="window: expected a whole number"):
        OwnSettings(2.5)

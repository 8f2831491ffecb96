"""Helpers of the tests that have something to get wrong themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from helpers import browsers, warm_python
from helpers.pairwise import pairwise

AXES = [
    [["a", "b", "c", "d", "e", "f"], ["x", "y"], [(0, 1), (0, 3), (1, 1), (1, 3)], [1, 2]],
    [[0, 1], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1]],
    [[0, 1, 2], ["only"], [0, 1, 2], [0, 1, 2]],
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("axes", AXES)
def test_every_pair_of_values_meets(axes: list[list[object]], seed: int) -> None:
    chosen = pairwise(*axes, seed=seed)
    for first, second in combinations(range(len(axes)), 2):
        met = {(combination[first], combination[second]) for combination in chosen}
        assert met == {(one, other) for one in axes[first] for other in axes[second]}


@pytest.mark.parametrize(("axes", "most"), [(AXES[0], 24), (AXES[1], 9), (AXES[2], 10)])
def test_combinations_are_few_and_the_same_each_time(axes: list[list[object]], most: int) -> None:
    chosen = pairwise(*axes)
    assert len(chosen) == len(set(chosen)) <= most
    assert chosen == pairwise(*axes)


SAYS_ALL = """
import os, sys
assert not [name for name in sys.modules if name.split(".")[0] == "ftrace"]
import ftrace
print(os.getcwd(), os.environ.get("OURS"), sys.argv[1:], __name__, sys.stdin.read())
print("trouble", file=sys.stderr)
"""


def test_a_warm_process_is_as_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 5\n")
    (tmp_path / "script.py").write_text(SAYS_ALL + "import beside\nsys.exit(beside.VALUE)\n")
    commands = [["script.py", "a", 1], ["-c", SAYS_ALL, "a", 1]]
    for arguments, expected in zip(commands, (5, 0), strict=True):
        done = warm_python.run(*arguments, cwd=tmp_path, env={**os.environ, "OURS": "yes"})
        assert (done.returncode, done.stderr) == (expected, "trouble\n")
        assert done.stdout == f"{tmp_path} yes ['a', '1'] __main__ \n"
    assert warm_python.run("-m", "beside", cwd=tmp_path).returncode == 0
    for arguments in commands:
        command = [sys.executable, *map(str, arguments)]
        new = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        warm = warm_python.run(*arguments, cwd=tmp_path)
        assert (warm.returncode, warm.stdout, warm.stderr) == (new.returncode, new.stdout, new.stderr)


def test_ends_of_warm_processes_are_told() -> None:
    ends = ["raise KeyError('lost')", "raise SystemExit('no')", "import os; os.kill(os.getpid(), 9)", "x = 1"]
    raised, refused, killed, whole = warm_python.run_together([["-c", end] for end in ends])
    assert raised.returncode == refused.returncode == 1
    assert raised.stderr.splitlines()[-1] == "KeyError: 'lost'"
    assert refused.stderr == "no\n"
    assert (killed.returncode, whole.returncode) == (-9, 0)


def test_what_takes_too_long_is_killed() -> None:
    assert warm_python.run("-c", "print(0)").stdout == "0\n"
    with pytest.raises(subprocess.TimeoutExpired):
        warm_python.run("-c", "import time; time.sleep(60)", timeout=0.5)
    assert warm_python.run("-c", "print(1)").stdout == "1\n"


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_missing_browser_is_said_in_a_line_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setattr(browsers, "find_browser", lambda name, playwright: None)
    monkeypatch.setenv("CI", ci)
    with (
        pytest.raises(outcome, match=r"^found no firefox that starts: install it .*playwright install firefox`$"),
        browsers.launched("firefox"),
    ):
        pass

"""Reports of failed self-checks: an error, or a warning and a line in the manifest."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ftrace.gradients import leave_out
from ftrace.shown_text import plain_lines


class SelfCheckError(RuntimeError):
    """The error of a self-check: gradients that hooks read off the model disagree with autograd."""


class Failures:
    """The failed checks of a run.

    Args:
        strict: Whether to raise an error at the first one; otherwise all are recorded, and the first one is a warning.
        who: Whose messages these are.
        patterns: The globs that chose the parameters.

    Attributes:
        problems: The problems that were reported.
    """

    def __init__(self, *, strict: bool, who: str, patterns: Sequence[str] = ("*",)) -> None:
        self.strict = strict
        self.who = who
        self.patterns = tuple(patterns)
        self.problems: list[str] = []

    def report(self, problem: str, remedy: str = "", names: Sequence[str] = ()) -> None:
        """Raise an error, or record the problem and warn.

        Args:
            problem: What is wrong.
            remedy: What can be done about it; default: leaving parameters out.
            names: The parameters to leave out.

        Raises:
            SelfCheckError: When strict.
        """
        if not remedy:
            remedy = leave_out(names, self.patterns) if names else "Leave such parameters out with parameters=(...)"
        message = f"{self.who} self_check: {problem}. {remedy}, or let training go on with strict=False."
        if self.strict:
            raise SelfCheckError(message)
        self.problems.append(problem)
        if len(self.problems) == 1:
            warnings.warn(plain_lines(message), stacklevel=4)

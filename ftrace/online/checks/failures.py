"""What a run finds wrong with its own scores: an error, or a warning and a line in the manifest."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ftrace.gradients import leave_out


class SelfCheckError(RuntimeError):
    """Gradients that hooks read off the model disagree with autograd."""


class Failures:
    """The failed checks of a run.

    Args:
        strict: Raise at the first one; otherwise note it, and warn the first time.
        who: Whose messages these are.
        patterns: The globs that chose the parameters.
    """

    def __init__(self, *, strict: bool, who: str, patterns: Sequence[str] = ("*",)) -> None:
        self.strict = strict
        self.who = who
        self.patterns = tuple(patterns)
        self.found: list[str] = []

    def report(self, problem: str, remedy: str = "", names: Sequence[str] = ()) -> None:
        """Raise, or note and warn.

        Args:
            problem: What is wrong.
            remedy: What can be done about it; default: leaving parameters out.
            names: Those.

        Raises:
            SelfCheckError: When strict.
        """
        if not remedy:
            remedy = leave_out(names, self.patterns) if names else "Leave such parameters out with parameters=(...)"
        message = f"{self.who} self_check: {problem}. {remedy}, or let training go on with strict=False."
        if self.strict:
            raise SelfCheckError(message)
        self.found.append(problem)
        if len(self.found) == 1:
            warnings.warn(message, stacklevel=4)

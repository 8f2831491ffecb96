"""Parameters whose gradients can't be read off their own layers: read off outer modules instead, or left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ftrace.gradients import GradientCapture, Recording, UnreadableError, leave_out
from ftrace.online.messages import warn
from ftrace.online.processes import gather_objects


class UnreadableParameters:
    """The parameters of one run that turn out not to be readable off their layers.

    Args:
        capture: Records training.
        who: Whose messages these are.
        strict: Whether a parameter that can't be read is an error; otherwise it is left out.
        or_else: What the user can do about a parameter that can't be read, instead of leaving it out.

    Attributes:
        left_out: By parameter that could not be read, the reason.
        widened: By parameter that is read off an outer module, the path of this module.
    """

    def __init__(self, capture: GradientCapture, who: str, *, strict: bool, or_else: str = "") -> None:
        self.capture = capture
        self.who = who
        self.strict = strict
        self.or_else = or_else
        self.left_out: dict[str, str] = {}
        self.widened: dict[str, str] = {}
        self._first_problem: dict[str, str] = {}

    def work_around(self, problem: UnreadableError, seen: Collection[str]) -> list[str]:
        """Read parameters off outer modules, or leave them out.

        Args:
            problem: What can't be read.
            seen: Paths of layers whose rows were found.

        Returns:
            Names of the parameters that are read in another way from here on, or not at all.

        Raises:
            ValueError: If the problem names no parameter that is read, or is one of all parameters.
        """
        if problem.of_all:
            raise ValueError(f"{self.who}: {problem.problem}.")
        names = self.covered(problem)
        for name in names:
            self._first_problem.setdefault(name, problem.problem)
        moved = self.capture.widen(names, seen, to_graph=not problem.mixes)
        self.widened |= moved
        if not names:
            raise ValueError(f"{self.who}: {problem.problem}{self.or_else}.")
        reasons: dict[str, list[str]] = {}
        for name in names:
            if name not in moved:
                reasons.setdefault(self._first_problem[name], []).append(name)
        for reason, alike in reasons.items():
            self.leave_out(alike, reason)
        return [*names, *moved]

    def covered(self, problem: UnreadableError) -> list[str]:
        """List the parameters of a problem that are covered."""
        covered = set(self.capture.coverage.covered)
        return [name for name in problem.names if name in covered]

    def leave_out(self, names: Collection[str], reason: str) -> None:
        """Leave out parameters, with a warning unless strict."""
        if not self.strict:
            warn(f"{self.who}: {reason}. Left out")
        self.capture.leave_out(names, reason)
        self.left_out |= dict.fromkeys(names, reason)
        self.widened = {name: path for name, path in self.widened.items() if name not in names}

    def leave_out_unread(self, recordings: Sequence[Recording]) -> bool:
        """Leave out what a backward pass could not read on any process. All processes must call it.

        Returns:
            Whether anything was left out.

        Raises:
            ValueError: When strict, if anything was left out.
        """
        here = [error for recording in recordings for error in recording.of_pass.unread.values()]
        unread = [error for of_process in gather_objects(here) for error in of_process]
        for recording in recordings:
            recording.of_pass.unread.clear()
        for error in unread:
            self.leave_out(error.names, error.problem)
        self.require_nothing_left_out()
        return bool(unread)

    def require_nothing_left_out(self) -> None:
        """Raise an error, when strict, that names all that was left out; called once all of it is known.

        Raises:
            ValueError: When strict, if anything was left out.
        """
        if not (self.strict and self.left_out):
            return
        reasons = list(dict.fromkeys(self.left_out.values()))
        if not self.capture.coverage.covered:
            raise ValueError(
                f"{self.who}: {'. Also: '.join(reasons)}. No other parameter is covered, so none would be left to "
                "compute scores from. Give modules the whole batch as padded tensors with one row per example, "
                "[examples, ...], and rows that don't count a weight of 0 in the loss; or go through rows within the "
                "forward of a module that returns one row for each example."
            )
        remedy = leave_out(self.left_out, self.capture.coverage.patterns)
        raise ValueError(f"{self.who}: {'. Also: '.join(reasons)}. {remedy}{self.or_else}.")

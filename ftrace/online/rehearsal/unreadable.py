"""Parameters that can't be read off their own layers: read off modules further out, or left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from ftrace.gradients import GradientCapture, Recording, UnreadableError, leave_out
from ftrace.online.messages import warn
from ftrace.online.processes import gather_objects


class UnreadableParameters:
    """The parameters of one run that turn out not to be readable off their layers.

    Args:
        capture: Records training.
        who: Whose messages these are.
        strict: Whether a parameter that can't be read is an error, and not left out.
        or_else: What else can be done about a parameter that can't be read, beside leaving it out.

    Attributes:
        left_out: Parameters that could not be read, and why.
        widened: Parameters that are read off a module further out.
    """

    def __init__(self, capture: GradientCapture, who: str, *, strict: bool, or_else: str = "") -> None:
        self.capture = capture
        self.who = who
        self.strict = strict
        self.or_else = or_else
        self.left_out: dict[str, str] = {}
        self.widened: dict[str, str] = {}
        self._first_problem: dict[str, str] = {}

    def yield_to(self, problem: UnreadableError, seen: Collection[str]) -> list[str]:
        """Read parameters off modules further out, or leave them out.

        Args:
            problem: What can't be read.
            seen: Names of layers that have been seen at work.

        Returns:
            Names of the parameters that are read in another way from here on, or not at all.

        Raises:
            ValueError: If it names no parameter that is read.
        """
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
        """Those of the parameters that can't be read that are read now."""
        covered = set(self.capture.coverage.covered)
        return [name for name in problem.names if name in covered]

    def leave_out(self, names: Collection[str], reason: str) -> None:
        """Read parameters no more."""
        if not self.strict:
            warn(f"{self.who}: {reason}. Left out")
        self.capture.leave_out(names, reason)
        self.left_out |= dict.fromkeys(names, reason)
        self.widened = {name: path for name, path in self.widened.items() if name not in names}

    def leave_out_unread(self, recordings: Sequence[Recording]) -> bool:
        """Leave out what a backward pass could not read on any process. All processes must call it.

        Returns:
            Whether there was something.

        Raises:
            ValueError: When strict, if there was.
        """
        here = [error for one in recordings for error in one.of_pass.unread.values()]
        unread = [error for there in gather_objects(here) for error in there]
        for one in recordings:
            one.of_pass.unread.clear()
        for error in unread:
            self.leave_out(error.names, error.problem)
        self.require_nothing_left_out()
        return bool(unread)

    def require_nothing_left_out(self) -> None:
        """When strict: raise once all that can't be read is known, so that one remedy is enough.

        Raises:
            ValueError: If something has been left out.
        """
        if not (self.strict and self.left_out):
            return
        reasons = list(dict.fromkeys(self.left_out.values()))
        if not self.capture.coverage.covered:
            raise ValueError(
                f"{self.who}: {'. Also: '.join(reasons)}. No other parameter is covered, so none would be left to "
                "score by. Give modules the whole batch, one row an example, [examples, ...], padded, and losses that "
                "don't count a weight of 0; or go through rows within the forward of a module that returns one row for "
                "each example."
            )
        remedy = leave_out(self.left_out, self.capture.coverage.patterns)
        raise ValueError(f"{self.who}: {'. Also: '.join(reasons)}. {remedy}{self.or_else}.")


def used_elsewhere(names: Sequence[str], covered: Mapping[str, nn.Parameter]) -> UnreadableError:
    """An error that says that parameters are used outside of the modules that they are read off."""
    hooked = [name for name in names if covered[name]._backward_hooks]
    if hooked:
        problem = f"{hooked[0]!r} has a hook of yours that changes its gradient"
    else:
        problem = (
            "the training step uses parameters outside of the modules that they are read off, such as in a penalty on "
            'weights (use weight_decay), or under a torch.autocast of its own (name it, too: precision="bf16-mixed")'
        )
    return UnreadableError(problem, names)

"""The search for the inputs of a batch, and their axes, by whose exchange it shows whose rows are whose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from ftrace.gradients import ExchangeError, LayoutBook, Rehearsal, Rows, Shared, UnreadableError
from ftrace.online.rehearsal.exchange import Inputs
from ftrace.online.rehearsal.trial_steps import TrialSteps


class RowSearch:
    """The search for whose rows are whose, over all tensors and axes that may hold the examples of a batch.

    First, all tensors that may hold examples are exchanged along their first axis of the right size. If that fails, it
    tries other axes and fewer tensors. Since such a trial may also hide that a layer mixes examples, it counts only if
    the queries' passes lead to the same result.

    Args:
        trials: Runs the training step of the current batch.
        rehearsal_of: Makes a rehearsal in which some inputs are exchanged.
        query_rows: Finds out whose rows are whose in the queries' passes, by their single losses; returns None if it
            can't.

    Attributes:
        seen: Paths of layers whose rows were found in a search that failed as a whole.
        is_turned: Whether examples are along a later axis than the first one of the right size.
    """

    def __init__(
        self,
        trials: TrialSteps,
        rehearsal_of: Callable[[Sequence[Inputs]], Rehearsal],
        query_rows: Callable[[], LayoutBook | None],
    ) -> None:
        self.trials = trials
        self.seen: set[str] = set()
        self.is_turned = False
        self._rehearsal_of = rehearsal_of
        self._query_rows = query_rows
        self._lost_regular = False

    def find(self, inputs: list[Inputs], book: LayoutBook) -> Rehearsal:
        """Find out whose rows are whose.

        Args:
            inputs: The inputs that may be exchanged; changed in place to those that were.
            book: The rows that are known already; not changed.

        Returns:
            A rehearsal whose own book has what was found: nothing, if the batch has a single example.

        Raises:
            UnreadableError: If some rows can't be told apart.
            ValueError: If no inputs can be exchanged.
        """
        first_error: UnreadableError | None = None
        self._lost_regular = False
        others = [[of_loader] for of_loader in inputs[0].turned()] if len(inputs) == 1 else []
        for trial in chain([inputs, *others], self._with_fewer(inputs)):
            rehearsal = self._rehearsal_of(trial)
            if rehearsal.examples.total == 1:
                return rehearsal
            try:
                rehearsal = self._find_by(trial, book)
            except UnreadableError as error:
                first_error = first_error or error
                continue
            if trial is not inputs and not self._queries_agree(rehearsal.book):
                continue
            self.is_turned = trial in others
            inputs[:] = trial
            return rehearsal
        assert first_error is not None
        raise first_error

    def _find_by(self, inputs: list[Inputs], book: LayoutBook) -> Rehearsal:
        """Find out by exchanging these inputs, without those with which the step fails."""
        while True:
            rehearsal = self._rehearsal_of(inputs)
            rehearsal.book = book.copy()
            try:
                with self.trials.counted(rehearsal):
                    rehearsal.find_rows()
                return rehearsal
            except UnreadableError:
                self.seen |= {key.path for key in rehearsal.book.verified}
                self._lost_regular = self._lost_regular or rehearsal.lost_regular
                raise
            except ExchangeError as error:
                self.trials.fix_what_fails(inputs, error, self._rehearsal_of)

    def _with_fewer(self, inputs: list[Inputs]) -> Iterator[list[Inputs]]:
        """Leave out each tensor in turn, unless a layer has no layout although its shape fits the batch.

        Such a layer mixes examples, or the step reorders its rows. That stays true if the tensor whose exchange shows
        it is left as it is.
        """
        if len(inputs) == 1 and not self._lost_regular:
            yield from ([of_loader] for of_loader in inputs[0].with_fewer())

    def _queries_agree(self, book: LayoutBook) -> bool:
        """Whether rows are along the same axes in the queries' passes, in all layers known from both."""
        of_queries = self._query_rows()
        if of_queries is None:
            return False
        both = [(book.known[key], of_queries.known[key]) for key in book.verified & of_queries.verified]
        return not all(isinstance(rows, Shared) for rows, _ in both) and all(_same_axis(*pair) for pair in both)


def _same_axis(first: Rows, second: Rows) -> bool:
    if isinstance(first, Shared) or isinstance(second, Shared):
        return isinstance(first, Shared) and isinstance(second, Shared)
    return first.axis == second.axis

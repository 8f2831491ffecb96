"""Which of a batch's inputs to exchange, and along which axis, to find out whose rows are whose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from ftrace.gradients import ExchangeError, LayoutBook, Rehearsal, Rows, Shared, UnreadableError
from ftrace.online.rehearsal.exchange import Inputs
from ftrace.online.rehearsal.trial_steps import TrialSteps


class RowSearch:
    """The search for whose rows are whose.

    Which of a batch's tensors hold examples, and along which axis, is tried where several may. Since layers that mix
    examples look alike, such a trial counts only where the queries tell the same.

    Args:
        trials: The steps that are tried out.
        rehearsal_of: Makes a rehearsal in which some inputs are exchanged.
        query_rows: Finds out whose rows are whose in the queries' passes, whose losses tell; None if it can't.

    Attributes:
        seen: Paths of layers that were seen at work in a search that failed.
        is_turned: Whether examples are along a later axis than the first that may be theirs.
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
            inputs: What may be exchanged; afterwards, what was.
            book: What is known already; stays as it is.

        Returns:
            A rehearsal whose own book has what was found. That of a single example has found nothing.

        Raises:
            UnreadableError: If some rows can't be told apart.
            ValueError: If nothing can be exchanged.
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
        """Find out by exchanging these inputs, or those of them with which the step doesn't fail."""
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
        """Leave out one tensor each, but only where rows are lost that are as many as some rows of a batch are.

        A layer whose rows are the batch's, and move when others' inputs are exchanged, mixes examples, or gets them in
        an order of the step's own. That stays so if the tensor that shows it is left as it is.
        """
        if len(inputs) == 1 and not self._lost_regular:
            yield from ([of_loader] for of_loader in inputs[0].with_fewer())

    def _queries_agree(self, book: LayoutBook) -> bool:
        of_queries = self._query_rows()
        if of_queries is None:
            return False
        both = [(book.known[key], of_queries.known[key]) for key in book.verified & of_queries.verified]
        return not all(isinstance(rows, Shared) for rows, _ in both) and all(_same_axis(*pair) for pair in both)


def _same_axis(first: Rows, second: Rows) -> bool:
    if isinstance(first, Shared) or isinstance(second, Shared):
        return isinstance(first, Shared) and isinstance(second, Shared)
    return first.axis == second.axis

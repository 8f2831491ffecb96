"""The record of when each query was answered right: one truth for all that is said of when queries were learned.

A run asks its queries at each refresh. The record has a row for each of these steps: 1 where a query was right, 0 where
it was wrong, -1 where that is unknown, as it is before a query was added. A store keeps it in two arrays:

    evaluated_steps.npy   int64 [R], ascending
    answered_right.npy    int8 [R, Q], with the queries of query_ids.npy
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

State = Literal["known", "learned", "learned again", "forgotten", "never", "unknown"]
STATES: tuple[State, ...] = get_args(State)
RIGHT, WRONG, UNKNOWN = 1, 0, -1
STEPS_FILE, RIGHT_FILE = "evaluated_steps", "answered_right"


@dataclass(frozen=True)
class Answered:
    """When one query was answered right.

    Args:
        state: "known": right at its first evaluation, and at each one since; "learned": first wrong, then right until
            the end; "learned again": right, then wrong, then right at the end; "forgotten": right once, and wrong at
            the end; "never": wrong at each evaluation; "unknown": nobody asked.
        first_asked: The step of its first evaluation; None if there was none.
        first_right: The first step at which it was right; None if there is none.
        since: The step since which it is right, or wrong if it was forgotten; None if it never was right.
    """

    state: State
    first_asked: int | None = None
    first_right: int | None = None
    since: int | None = None

    @property
    def was_known(self) -> bool:
        """Whether it was right at its first evaluation, so that training since then didn't teach it."""
        return self.first_right is not None and self.first_right == self.first_asked

    @property
    def step(self) -> int | None:
        """The first step at which it was right; -1 if it never was, None if nobody asked."""
        return -1 if self.state == "never" else self.first_right

    @property
    def is_right_at_end(self) -> bool | None:
        """Whether it was right at its last evaluation; None if nobody asked."""
        return None if self.state == "unknown" else self.state not in ("forgotten", "never")

    def __str__(self) -> str:
        if self.state == "unknown":
            return "not known when it was answered right"
        if self.state == "never":
            return "never answered right"
        assert self.first_right is not None
        assert self.since is not None
        if not self.was_known:
            begins = f"first answered right at step {self.first_right:,}"
        elif self.first_right == 0:
            begins = "answered right before training"
        else:
            begins = f"answered right at step {self.first_right:,}, when it was first asked"
        if self.state == "forgotten":
            return f"{begins}, forgotten at step {self.since:,}"
        if self.state == "learned again":
            return f"{begins}, forgotten in between, learned again at step {self.since:,}"
        return begins


NEVER_ASKED = Answered("unknown")


class AnswerRecord:
    """The record of when each query was right.

    Args:
        steps: ``[R]``, the optimizer steps before which queries were asked, ascending.
        query_ids: ``[Q]`` int64.
        right: ``[R, Q]``: 1 right, 0 wrong, -1 unknown.

    Raises:
        ValueError: If shapes don't agree, steps don't ascend, or there are other values.

    Example:
        >>> record = AnswerRecord([0, 10, 20], [7, 8], [[1, 0], [1, 1], [0, 1]])
        >>> [str(record.of(query)) for query in (7, 8)]
        ['answered right before training, forgotten at step 20', 'first answered right at step 10']
        >>> record.first_right_steps()
        array([ 0, 10])
    """

    def __init__(self, steps: object, query_ids: object, right: object) -> None:
        self.steps = np.asarray(steps, np.int64)
        self.query_ids = np.asarray(query_ids, np.int64)
        self.right = np.asarray(right, np.int8)
        shape = (len(self.steps), len(self.query_ids))
        if self.right.shape != shape:
            raise ValueError(f"expected answers of each step and query, {list(shape)}, found {list(self.right.shape)}")
        if (np.diff(self.steps) <= 0).any():
            raise ValueError("expected the steps of evaluations in ascending order, each once")
        if not np.isin(self.right, (RIGHT, WRONG, UNKNOWN)).all():
            raise ValueError("expected 1 where a query was right, 0 where it was wrong and -1 where that is unknown")

    @classmethod
    def of_ends(
        cls, steps: np.ndarray, next_steps: np.ndarray, query_ids: np.ndarray, learned: np.ndarray
    ) -> AnswerRecord:
        """Make the record of a ledger of earlier versions, which noted intervals' ends only: its start is unknown.

        Args:
            steps: ``[R]``, the step at which each interval begins.
            next_steps: ``[R]``, the step at which it ends.
            query_ids: ``[Q]``.
            learned: ``[R, Q]``, 1 if a query was right at the interval's end; NaN where that is unknown.
        """
        by_step = {int(step): np.full(len(query_ids), UNKNOWN, np.int8) for step in sorted({*steps, *next_steps})}
        for step, row in zip(next_steps.tolist(), np.asarray(learned, float), strict=True):
            by_step[step] = np.where(np.isnan(row), by_step[step], row == 1).astype(np.int8)
        right = np.array(list(by_step.values()), np.int8).reshape(len(by_step), len(query_ids))
        return cls(list(by_step), query_ids, right)

    @property
    def knows(self) -> bool:
        """Whether it is known of any query at any step."""
        return bool((self.right != UNKNOWN).any())

    def at(self, steps: np.ndarray) -> np.ndarray:
        """Return who was right at some steps, ``[n, Q]`` float64; NaN where that is unknown."""
        places = np.searchsorted(self.steps, steps)
        rows = np.full((len(steps), len(self.query_ids)), np.nan)
        for row, (place, step) in enumerate(zip(places.tolist(), np.asarray(steps).tolist(), strict=True)):
            if place < len(self.steps) and self.steps[place] == step:
                rows[row] = np.where(self.right[place] == UNKNOWN, np.nan, self.right[place])
        return rows

    def of_queries(self, query_ids: np.ndarray) -> np.ndarray:
        """Return the answers of some queries in their order, ``[R, n]`` int8; unknown for others."""
        columns = {int(query): column for column, query in enumerate(self.query_ids)}
        right = np.full((len(self.steps), len(query_ids)), UNKNOWN, np.int8)
        for place, query in enumerate(np.asarray(query_ids).tolist()):
            if query in columns:
                right[:, place] = self.right[:, columns[query]]
        return right

    def first_right_steps(self) -> np.ndarray:
        """Return the first step at which each query was right, ``[Q]``; -1 if there is none."""
        is_right = self.right == RIGHT
        first = self.steps[is_right.argmax(0)] if len(self.steps) else -1
        return np.where(is_right.any(0), first, -1)

    def of(self, query_id: int) -> Answered:
        """Say when a query was right; "unknown" of a query that is not in the record."""
        columns = np.flatnonzero(self.query_ids == query_id)
        return self._answered(int(columns[0])) if len(columns) else NEVER_ASKED

    def states(self) -> dict[int, Answered]:
        """Say of each query when it was right."""
        return {int(query): self._answered(column) for column, query in enumerate(self.query_ids)}

    def _answered(self, column: int) -> Answered:
        asked = np.flatnonzero(self.right[:, column] != UNKNOWN)
        if not len(asked):
            return NEVER_ASKED
        steps, right = self.steps[asked], self.right[asked, column] == RIGHT
        first_asked = int(steps[0])
        if not right.any():
            return Answered("never", first_asked)
        changes = np.flatnonzero(right[1:] != right[:-1]) + 1
        since = int(steps[changes[-1]]) if len(changes) else first_asked
        state: State = "forgotten"
        if right[-1]:
            state = "learned again" if len(changes) > 1 else "learned" if len(changes) else "known"
        return Answered(state, first_asked, int(steps[right.argmax()]), since)

    def counts(self) -> dict[State, int]:
        """Count the queries in each state, of which there are any."""
        states = [answered.state for answered in self.states().values()]
        return {state: states.count(state) for state in STATES if state in states}

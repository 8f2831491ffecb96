"""The queries that a model has learned; the others have nothing to trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["paper", "last"]


@dataclass(frozen=True)
class LearnedQueries:
    """The queries that were learned, and how that was determined.

    Args:
        rule: "paper": the best answer of a beam search at the last snapshot is right, and none of the best three at
            the first one is (Akyürek et al. 2022). "last": greedy decoding at the last snapshot is right.
        query_ids: Ids of the learned queries.
        asked: Number of queries that were asked.
        right_at_last: Number that are answered correctly at the last snapshot.
        known_at_first: Number of those that were already known at the first snapshot, and so were not learned.
        snapshots: Names of the snapshots used: first and last, or only the last.
        key: Fingerprint of what the result depends on, for callers that store it.
    """

    rule: Rule
    query_ids: list[int]
    asked: int
    right_at_last: int
    known_at_first: int
    snapshots: list[str]
    key: str = ""

    def __str__(self) -> str:
        known = f"; {self.known_at_first} known {self._first()}" if self.known_at_first else ""
        return f"learned, of {self.asked}{known}"

    def _first(self) -> str:
        """Say when the first snapshot was taken, which need not be the start."""
        name = self.snapshots[0] if self.snapshots else ""
        step = name.removeprefix("step-")
        if not step.isdecimal():
            return "at the first snapshot"
        return f"at step {int(step):,}, {'before training' if int(step) == 0 else 'the first snapshot'}"

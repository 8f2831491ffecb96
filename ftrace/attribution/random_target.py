"""Random-Target: the value of knowing the answer alone (Akyürek et al. 2022, arXiv 2205.11482)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ftrace.arguments import Name, Seed, checked
from ftrace.attribution.method import AttributionMethod, Task
from ftrace.data import answers_in
from ftrace.scores import ScoreStore


@checked
@dataclass(frozen=True)
class RandomTarget(AttributionMethod):
    """Examples with the query's target first, in random order, then all others in random order.

    An example of several facts has the target if one of its answers is the query's. Scores are ranks, counted from the
    end; those of an example don't depend on which others are scored.

    Args:
        seed: Of the orders, of which each query has its own.
    """

    name: ClassVar[Name] = "random-target"

    seed: Seed = 0

    def score(self, task: Task) -> ScoreStore:
        """Score the task's examples."""
        total = len(task.data.train_rows)
        with_answer: dict[str, list[int]] = {}
        for position, targets in enumerate(task.data.train_rows["targets_pretokenized"]):
            for answer in answers_in(targets):
                with_answer.setdefault(answer, []).append(position)

        def column(query_id: int, targets: str) -> dict[str, np.ndarray]:
            order = np.random.default_rng([self.seed, query_id]).permutation(total).astype(np.float32)
            for answer in answers_in(targets):
                order[with_answer.get(answer, [])] += total
            return {"random-target": order[task.examples]}

        return task.write(self, (column(row["query_id"], row["targets_pretokenized"]) for row in task.query_rows()))

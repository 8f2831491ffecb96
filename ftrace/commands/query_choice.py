"""Which of a run's queries a command takes: the same options in every command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ftrace.arguments import Positive, Seed, checked
from ftrace.evaluation import EvaluatedQueries, seeded_sample
from ftrace.evaluation.learned import Rule
from ftrace.runs import Run


@checked
@dataclass(frozen=True)
class QueryChoice:
    """The options that choose queries of a run."""

    queries: Literal["learned", "all"] = "learned"
    """Those "learned" by the end of training, or "all"."""
    rule: Rule | None = None
    """What learned is: "paper", right at the last snapshot and not among the best three of a beam search at the first;
    "last", right at the last snapshot, greedily. Default: "paper", or "last" for a single snapshot."""
    sample: Positive | None = None
    """Take this many queries, by a seeded shuffle."""
    seed: Seed = 0
    """Of the sample, and of what else the command draws: halves of the queries, random examples, resampling."""

    def evaluated(self, run: Run, *, any_data: bool = False) -> EvaluatedQueries:
        """Choose among the queries that have ground-truth proponents.

        Args:
            run: The run.
            any_data: Whether to take all queries, without ground truth, where none has any.

        Raises:
            ValueError: If none is left.
        """
        queries = run.queries(self.seed)
        if any_data and not len(queries):
            queries = _without_ground_truth(run)
        if self.queries == "learned":
            learned = run.learned(self.rule)
            queries = queries.among(learned.query_ids, str(learned))
        if self.sample is not None:
            drawn = seeded_sample(queries.query_ids.tolist(), self.sample, self.seed)
            queries = queries.among(drawn, f"a sample of {len(queries)}: {queries.description}")
        _check_any(len(queries), queries.description)
        return queries

    def ids(self, run: Run) -> np.ndarray:
        """Choose among all queries, with and without ground-truth proponents.

        Returns:
            Their ids, int64 ``[Q]``.

        Raises:
            ValueError: If none is left.
        """
        chosen, description = list(run.tables.query_rows["query_id"]), "all"
        if self.queries == "learned":
            learned = run.learned(self.rule)
            chosen, description = learned.query_ids, str(learned)
        if self.sample is not None:
            chosen = seeded_sample(chosen, self.sample, self.seed)
        _check_any(len(chosen), description)
        return np.array(chosen, np.int64)

    def facts(self) -> Mapping[str, Any]:
        """Say which queries these are, for a manifest: what was given beside "learned" or "all"."""
        given = {"rule": self.rule, "sample": self.sample}
        facts = {"queries": self.queries, **{name: value for name, value in given.items() if value is not None}}
        return facts if self.sample is None else {**facts, "sample_seed": self.seed}


ALL_QUERIES = QueryChoice("all")


def _check_any(count: int, description: str) -> None:
    if not count:
        raise ValueError(
            f"expected at least one query, found none ({description}). Train for longer, or take --queries all"
        )


def _without_ground_truth(run: Run) -> EvaluatedQueries:
    ids = np.array(run.tables.query_rows["query_id"], np.int64)
    facts = tuple(fact or f"query {query}" for query, fact in zip(ids, run.tables.query_rows["fact"], strict=True))
    return EvaluatedQueries(ids, (np.zeros(0, np.int64),) * len(ids), facts, np.zeros(len(ids), bool), "all")

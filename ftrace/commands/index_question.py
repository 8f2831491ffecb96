"""What is asked of a gradient index: a run's queries, or those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftrace.arguments import Name, checked
from ftrace.commands.query_choice import ALL_QUERIES, QueryChoice
from ftrace.data import read_queries
from ftrace.evaluation import seeded_sample
from ftrace.models import Output
from ftrace.runs import Run

Row = Mapping[str, Any]


@checked
@dataclass(frozen=True)
class QuestionSettings:
    """The options that say what is asked of an index."""

    file: Name | None = None
    """A file of queries, with "inputs" and "targets", as FactCorpus reads them; default: the run's."""
    choice: QueryChoice = ALL_QUERIES
    """Which of the run's queries; of a file, how many to sample."""
    task_queries: Name | None = None
    """A file of the task's queries, which R is mixed with; default: those that are searched for."""
    output: Output | None = None
    """What is differentiated: "loss", "margin" or "logit"; default: as of the rows."""
    answers: Literal["one", "any"] | None = None
    """What a query's loss is: "one" or "any" of its answers; default: as the run's."""

    def __post_init__(self) -> None:
        if self.file is not None and (self.choice.queries == "learned" or self.choice.rule is not None):
            raise ValueError("queries: expected a run's own queries to choose the learned ones of, found a file")

    def rows(self, run: Run) -> list[Row]:
        """Read the rows of the queries."""
        if self.file is None:
            chosen = set(self.choice.ids(run).tolist())
            return [dict(row) for row in run.tables.query_rows if row["query_id"] in chosen]
        rows: list[Row] = list(read_queries(Path(self.file)))
        if self.choice.sample is None:
            return rows
        return [rows[position] for position in seeded_sample(range(len(rows)), self.choice.sample, self.choice.seed)]

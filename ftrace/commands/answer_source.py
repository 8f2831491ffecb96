"""The scores of examples for an answer, in the form in which scores are shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftrace.data import FactData, fill_in
from ftrace.views import History, Ranking, Row
from ftrace.views.words import sample_step


class AnswerSource:
    """Scores of examples for one answer to a question, with the texts of a data set.

    Args:
        name: The answer, as the column is called.
        ids: Ids of the examples, int64 ``[N]``: also their places in the data set's training rows.
        scores: ``[N]``.
        data: The data set that the ids are of.
        query: What is known of the question: "text", "answer", and which examples state its fact.
        kind: What the scores are called, if not just that.
    """

    is_complete = True

    def __init__(
        self, name: str, ids: np.ndarray, scores: np.ndarray, data: FactData, query: Row, kind: str = ""
    ) -> None:
        self.name, self.kind = name, kind
        self._ids, self._scores = ids, scores
        self._rows = data.train_rows
        self._query = query

    @property
    def query_ids(self) -> Sequence[int]:
        """The id of the only query."""
        return [0]

    def doubts(self) -> Sequence[str]:
        """Return nothing: an index has no account that would not add up."""
        return []

    def ranking(self, query_id: int, *, largest: bool = True) -> Ranking | None:
        """Rank the examples."""
        return Ranking(self._ids, self._scores, largest=largest)

    def query_rows(self, query_ids: Sequence[int]) -> list[Row | None]:
        """Return what is known of the question."""
        return [self._query for _ in query_ids]

    def example_rows(self, example_ids: Sequence[int]) -> list[Row | None]:
        """Return the texts of examples."""
        rows = self._rows[list(example_ids)] if len(example_ids) else {"inputs_pretokenized": []}
        texts = self._texts(rows) if len(example_ids) else []
        facts = rows.get("facts", [None] * len(texts))
        return [{"text": text, "facts": of_row} for text, of_row in zip(texts, facts, strict=True)]

    def query_name(self, query_id: int) -> str | None:
        """Return None: a question has no name."""
        return None

    def example_name(self, example_id: int) -> str | None:
        """Return None: examples are called by their ids."""
        return None

    def states_fact(self, query_id: int, example_id: int) -> bool | None:
        """Return None: the question says which fact it asks for."""
        return None

    def history(self, query_id: int) -> History | None:
        """Return None: nobody followed the question's loss."""
        return None

    def sample_texts(self) -> Sequence[str]:
        """Return some of the examples' texts."""
        step = sample_step(len(self._rows))
        return self._texts(self._rows[::step])

    @staticmethod
    def _texts(rows: Row) -> list[str]:
        return [fill_in(*pair) for pair in zip(rows["inputs_pretokenized"], rows["targets_pretokenized"], strict=True)]

"""An inverted index from facts to the training rows that state them.

Rows are masked variants of sentences, and a fact that is listed for one variant is stated by all of them. Keys of facts
are matched whole: ``P17,Q1,Q2`` is not ``P176,Q1,Q2``.

Held as flat arrays, a few numbers for each pair of sentence and fact, so that millions of rows fit.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import pyarrow as pa


class FactIndex:
    """Index of facts. Add all rows in order before looking anything up.

    Example:
        >>> index = FactIndex()
        >>> for sentence, facts in enumerate([["P17,Q1,Q2"], ["P176,Q1,Q2"], ["P17,Q1,Q2"]]):
        ...     index.add(sentence, facts)
        >>> index.rows_stating("P17,Q1,Q2").tolist()
        [0, 2]
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._facts = array("q")
        self._sentences = array("q")
        self._sentence_of_row = array("q")
        self._num_listed = array("q")

    def add(self, sentence: int, facts: Iterable[str]) -> None:
        """Add the next row.

        Args:
            sentence: Which sentence it is a variant of; sentences are counted from 0 in the order of appearance.
            facts: Keys of the facts that the source lists for the row.
        """
        self._sentence_of_row.append(sentence)
        before = len(self._facts)
        for fact in dict.fromkeys(facts):
            self._facts.append(self._numbers.setdefault(fact, len(self._numbers)))
            self._sentences.append(sentence)
        self._num_listed.append(len(self._facts) - before)

    @property
    def num_facts(self) -> int:
        """Number of different facts."""
        return len(self._numbers)

    @property
    def num_sentences(self) -> int:
        """Number of different sentences."""
        return len(self._rows_of_sentence[1]) - 1

    def rows_stating(self, fact: str) -> np.ndarray:
        """Return the indices of all rows whose sentence states a fact, int64, ascending; none for an unknown fact."""
        number = self._numbers.get(fact)
        if number is None:
            return np.empty(0, dtype=np.int64)
        sentences, starts = self._sentences_of_fact
        rows, _ = _gather(*self._rows_of_sentence, sentences[starts[number] : starts[number + 1]])
        return np.sort(rows)

    def facts_of_rows(self, start: int, stop: int) -> pa.ListArray:
        """Return the keys of all facts that the sentences of rows ``start`` to ``stop`` state, one list per row."""
        sentences = np.frombuffer(self._sentence_of_row, dtype=np.int64)[start:stop]
        facts, lengths = _gather(*self._facts_of_sentence, sentences)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), self._keys.take(pa.array(facts)))

    def num_listed(self, start: int, stop: int) -> np.ndarray:
        """Return how many facts the source lists for each of the rows ``start`` to ``stop`` itself, int64."""
        return np.frombuffer(self._num_listed, dtype=np.int64)[start:stop]

    @cached_property
    def _keys(self) -> pa.Array:
        return pa.array(list(self._numbers), pa.string())

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Different pairs of sentence and fact, sorted by sentence, then fact, each ``[P]``."""
        facts = np.frombuffer(self._facts, dtype=np.int64) if self._facts else np.empty(0, dtype=np.int64)
        sentences = np.frombuffer(self._sentences, dtype=np.int64) if self._sentences else facts
        both = np.unique(sentences * max(1, self.num_facts) + facts)
        sentence, fact = np.divmod(both, max(1, self.num_facts))
        return sentence, fact

    @cached_property
    def _facts_of_sentence(self) -> tuple[np.ndarray, np.ndarray]:
        sentences, facts = self._pairs
        return facts, np.searchsorted(sentences, np.arange(self.num_sentences + 1))

    @cached_property
    def _sentences_of_fact(self) -> tuple[np.ndarray, np.ndarray]:
        sentences, facts = self._pairs
        order = np.argsort(facts, kind="stable")
        return sentences[order], np.searchsorted(facts[order], np.arange(self.num_facts + 1))

    @cached_property
    def _rows_of_sentence(self) -> tuple[np.ndarray, np.ndarray]:
        sentence_of_row = np.array(self._sentence_of_row, dtype=np.int64)
        order = np.argsort(sentence_of_row, kind="stable")
        count = int(sentence_of_row.max(initial=-1)) + 1
        return order, np.searchsorted(sentence_of_row[order], np.arange(count + 1))


def _gather(values: np.ndarray, starts: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of some groups, one group after the other, and the size of each group.

    Group g's values are ``values[starts[g] : starts[g + 1]]``.
    """
    lengths = starts[groups + 1] - starts[groups]
    before = np.cumsum(lengths) - lengths
    positions = np.arange(lengths.sum()) + np.repeat(starts[groups] - before, lengths)
    return values[positions], lengths

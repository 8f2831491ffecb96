"""BM25 over sentences: what the method ranks by, and what candidate pools begin with.

The formula is that of ``rank_bm25.BM25Plus`` with its defaults (k1 1.5, b 0.75, delta 1), as in the code of Akyürek et
al. 2022; a summary of the paper prints it with + 1 inside the denominator. ``bm25s`` computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np

K1, B, DELTA = 1.5, 0.75, 1.0


class Bm25Index:
    """An index of documents.

    Args:
        documents: Each document's words.
        k1: How soon more of a word counts no more.
        b: How much long documents are marked down, from 0 to 1.
        delta: What each word that occurs counts at least.

    Raises:
        ValueError: If no document has a word.
    """

    def __init__(
        self, documents: Sequence[Sequence[str]], *, k1: float = K1, b: float = B, delta: float = DELTA
    ) -> None:
        if not any(documents):
            raise ValueError("BM25: expected documents with words, found none")
        self._count = len(documents)
        self._index = bm25s.BM25(method="bm25+", k1=k1, b=b, delta=delta)
        self._index.index([list(words) for words in documents], show_progress=False)

    def scores(self, words: Sequence[str]) -> np.ndarray:
        """Scores of all documents for one query, float32 ``[N]``; a word that occurs twice counts twice."""
        if not words:
            return np.zeros(self._count, np.float32)
        found: np.ndarray = self._index.get_scores(list(words))
        return found

    def top(self, words: Sequence[str], k: int) -> np.ndarray:
        """Indices of the best ``k`` documents, best first; ties by index."""
        return np.argsort(-self.scores(words), kind="stable")[:k]

"""BM25 over sentences, used by the attribution method of that name and for candidate pools.

The formula is that of ``rank_bm25.BM25Plus`` with its defaults (k1 1.5, b 0.75, delta 1), as in the code of Akyürek et
al. 2022; a summary of the paper prints it with + 1 inside the denominator. ``bm25s`` computes it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from ftrace.arguments import NonNegativeNumber, Share, checked
from ftrace.progress import track

K1, B, DELTA = 1.5, 0.75, 1.0


@checked
class Bm25Index:
    """Index of documents.

    Args:
        documents: Each document's words.
        k1: Saturation of term frequency: the larger, the longer further occurrences of a word add to the score.
        b: Strength of length normalization, from 0 to 1.
        delta: Lower bound on the contribution of a word that occurs.

    Raises:
        ValueError: If no document has a word.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[str]],
        *,
        k1: NonNegativeNumber = K1,
        b: Share = B,
        delta: NonNegativeNumber = DELTA,
    ) -> None:
        import bm25s  # here, so that options of methods, which have these defaults, are read without it

        if not any(documents):
            raise ValueError("BM25: expected documents with words, found none")
        self._count = len(documents)
        self._index = bm25s.BM25(method="bm25+", k1=k1, b=b, delta=delta)
        words = [list(of_document) for of_document in track(documents, "words of documents")]
        self._index.index(words, show_progress=sys.stderr.isatty())

    def scores(self, words: Sequence[str]) -> np.ndarray:
        """Return the scores of all documents for one query, float32 ``[N]``; a word that occurs twice counts twice."""
        if not words:
            return np.zeros(self._count, np.float32)
        scores: np.ndarray = self._index.get_scores(list(words))
        return scores

    def top(self, words: Sequence[str], k: int) -> np.ndarray:
        """Return the indices of the best ``k`` documents, best first; ties by index."""
        return np.argsort(-self.scores(words), kind="stable")[:k]

"""BM25 over sentences with the answer filled in, or over their inputs or targets alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from ftrace.arguments import Name, NonNegativeNumber, Share, checked
from ftrace.attribution.method import AttributionMethod, Task
from ftrace.data import SENTINEL, Bm25Index, fill_in
from ftrace.data.bm25_index import DELTA, K1, B
from ftrace.data.words import words_of
from ftrace.progress import track
from ftrace.scores import ScoreStore


@checked
@dataclass(frozen=True)
class Bm25(AttributionMethod):
    """BM25 (the formula of rank_bm25.BM25Plus): words that an example and a query share.

    Words are counted over all training rows, whichever of them are scored.

    Args:
        text: What is compared: "filled", the sentence with its answer filled in; "masked", the inputs alone; "target",
            the targets alone. Masks are not words.
        tokens: "spaces": split at spaces; "words": runs of letters and digits, with their marks, in lower case, so that
            hyphens separate.
        k1: Saturation of a word's count: the larger, the more do repetitions count.
        b: How much long sentences are penalized, from 0 to 1.
        delta: The least that each word that occurs counts.
    """

    name: ClassVar[Name] = "bm25"

    text: Literal["filled", "masked", "target"] = "filled"
    tokens: Literal["spaces", "words"] = "spaces"
    k1: NonNegativeNumber = K1
    b: Share = B
    delta: NonNegativeNumber = DELTA

    def score(self, task: Task) -> ScoreStore:
        """Score the task's examples, one query after another."""
        rows = task.data.train_rows
        both = zip(rows["inputs_pretokenized"], rows["targets_pretokenized"], strict=True)
        texts = track(both, "rows", len(rows))
        index = Bm25Index([self.words(*of_row) for of_row in texts], k1=self.k1, b=self.b, delta=self.delta)
        columns = (
            {"bm25": index.scores(self.words(row["inputs_pretokenized"], row["targets_pretokenized"]))[task.examples]}
            for row in task.query_rows()
        )
        return task.write(self, columns, formula="BM25Plus")

    def words(self, inputs: str, targets: str) -> list[str]:
        """Split a row's compared text into words."""
        return _TOKENS[self.tokens](_TEXTS[self.text](inputs, targets))


_TEXTS: dict[str, Callable[[str, str], str]] = {
    "filled": fill_in,
    "masked": lambda inputs, targets: SENTINEL.sub(" ", inputs).strip(),
    "target": lambda inputs, targets: SENTINEL.sub(" ", targets).strip(),
}
_TOKENS: dict[str, Callable[[str], list[str]]] = {
    "spaces": lambda text: text.split(" "),
    "words": words_of,
}

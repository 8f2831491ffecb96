"""What each token of an example adds to its score: plain data, which methods make and reports show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SequenceScores:
    """Scores of the tokens of one sequence of an example.

    Args:
        name: "input" and "target" of an encoder-decoder, "text" of a decoder-only model.
        tokens: Texts of the tokens; joined, they are the sequence as its tokenizer decodes it.
        values: One for each token.
    """

    name: str
    tokens: Sequence[str]
    values: Sequence[float]


@dataclass(frozen=True)
class ExampleTokenScores:
    """Scores of an example's tokens, for one query.

    Args:
        example_id: The example.
        total: The example's score. It is the sum of all values, and of what can't be told token by token.
        sequences: Of the example.
    """

    example_id: int
    total: float
    sequences: Sequence[SequenceScores]


@dataclass(frozen=True)
class QueryTokenScores:
    """Scores of the tokens of some examples, for one query.

    Args:
        snapshot: Name of the snapshot whose weights they are taken at, such as "step-00000100".
        note: What the values are, and what they leave out.
        examples: In the order in which they were asked for.
    """

    snapshot: str
    note: str
    examples: Sequence[ExampleTokenScores]

"""What a report holds of the tokens of a query's strongest examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ftrace.report.explorer.format import QueryChunk, Tokens
from ftrace.report.explorer.short_numbers import rounded
from ftrace.scores import QueryTokenScores


def tokens_maker(scores: Mapping[int, QueryTokenScores], method: int) -> Callable[[QueryChunk], Tokens | None]:
    """Make the function that gives a query's tokens, of its chunk that is done but for these.

    Args:
        scores: By query id.
        method: As in :func:`token_content`.
    """

    def tokens(chunk: QueryChunk) -> Tokens | None:
        of_query = scores.get(int(chunk["id"]))
        positions = {int(example["id"]): place for place, example in enumerate(chunk["examples"])}
        return None if of_query is None else token_content(of_query, method, positions)

    return tokens


def token_content(scores: QueryTokenScores, method: int, positions: Mapping[int, int]) -> Tokens:
    """Turn scores of tokens into what a report holds of them.

    Args:
        scores: Of one query.
        method: The method whose strongest examples these are: a position in the head's ``methods``.
        positions: Of examples, by id, in the query's ``examples``. One that isn't there is left out.
    """
    return {
        "method": method,
        "snapshot": scores.snapshot,
        "note": scores.note,
        "examples": [
            {
                "example": positions[example.example_id],
                "total": rounded([example.total])[0],
                "sequences": [
                    {
                        "name": sequence.name,
                        "tokens": list(sequence.tokens),
                        "values": rounded(sequence.values),
                    }
                    for sequence in example.sequences
                ],
            }
            for example in scores.examples
            if example.example_id in positions
        ],
    }

"""What a report holds of the tokens of a query's strongest examples."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ftrace.report.explorer.format import Tokens
from ftrace.scores import QueryTokenScores


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
                "total": _short(example.total),
                "sequences": [
                    {
                        "name": sequence.name,
                        "tokens": list(sequence.tokens),
                        "values": [_short(value) for value in sequence.values],
                    }
                    for sequence in example.sequences
                ],
            }
            for example in scores.examples
            if example.example_id in positions
        ],
    }


def _short(value: float) -> float | None:
    """Round to six digits, more than anybody reads; None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None

"""What a report holds of tokens: positions for ids, short numbers, and nothing of examples that it doesn't list."""

from __future__ import annotations

import json

from ftrace.report.explorer.content.token_content import token_content, tokens_maker
from ftrace.scores import ExampleTokenScores, QueryTokenScores, SequenceScores


def test_ids_become_positions_and_numbers_short() -> None:
    text = SequenceScores("text", ["Oslo", " lies"], [1 / 3, float("nan")])
    examples = [ExampleTokenScores(2**60, 1 / 3, [text]), ExampleTokenScores(5, float("inf"), []),
                ExampleTokenScores(7, 1.0, [text])]  # fmt: skip
    content = token_content(QueryTokenScores("step-00000004", "What they are.", examples), 1, {5: 0, 2**60: 3})
    assert content == {
        "method": 1,
        "snapshot": "step-00000004",
        "note": "What they are.",
        "examples": [
            {
                "example": 3,
                "total": 0.333333,
                "sequences": [{"name": "text", "tokens": ["Oslo", " lies"], "values": [0.333333, None]}],
            },
            {"example": 0, "total": None, "sequences": []},
        ],
    }
    json.dumps(content, allow_nan=False)


def test_a_query_that_nobody_scored_has_none() -> None:
    scores = QueryTokenScores("step-00000004", "", [ExampleTokenScores(5, 1.0, [])])
    tokens = tokens_maker({2**60: scores}, 0)
    chunk = {"id": str(2**60), "examples": [{"id": "7"}, {"id": "5"}]}
    assert tokens(chunk) == token_content(scores, 0, {7: 0, 5: 1})  # type: ignore[arg-type]
    assert tokens({**chunk, "id": "3"}) is None  # type: ignore[arg-type]

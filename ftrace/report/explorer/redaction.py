"""What a report without texts has: ids, ranks, scores and what follows from them, and nothing that the data says.

Names of examples and queries are left out, too: titles and file names are texts. Whoever has the data finds an example
by its id, which of a name is ``ftrace.scores.stable_id(name)``.
"""

from __future__ import annotations

from typing import Any

from ftrace.report.explorer.format import Causal, Example, ExamplePage, QueryChunk
from ftrace.report.explorer.queries import properties_of
from ftrace.views import Row


def redacted_query(chunk: QueryChunk, row: Row) -> QueryChunk:
    """Return a query's chunk without texts.

    Args:
        chunk: The chunk.
        row: What the texts say of the query, of which numbers stay.
    """
    said, causal = chunk["said"], chunk["causal"]
    return {
        **chunk,
        "name": None,
        "prompt": None,
        "cut": 0,
        "answer": None,
        "accepted": [],
        "said": None if said is None else {**said, "text": None},
        "properties": list(properties_of({name: value for name, value in row.items() if _is_number(value)})),
        "examples": [_redacted_example(example) for example in chunk["examples"]],
        "tokens": None,
        "causal": None if causal is None else _redacted_causal(causal),
    }


def redacted_page(page: ExamplePage) -> ExamplePage:
    """Return an example's page without texts."""
    return {**page, "name": None, "text": None, "cut": 0, "answer": None}


def _redacted_example(example: Example) -> Example:
    return {**example, "name": None, "text": None, "cut": 0, "answer": None, "shared": []}


def _redacted_causal(causal: Causal) -> Causal:
    """Number the tokens in place of what they say."""
    stacks = [
        {**stack, "tokens": [str(place) for place in range(1, len(stack["tokens"]) + 1)]} for stack in causal["stacks"]
    ]
    return {**causal, "reason": "", "stacks": stacks}  # type: ignore[typeddict-item]


def _is_number(value: Any) -> bool:
    return all(map(_is_number, value)) if isinstance(value, list) else isinstance(value, int | float)

"""What a report without texts has: ids, ranks, scores and what follows from them, and nothing that the data says.

Names of examples and queries are left out, too: titles and file names are texts. Whoever has the data finds an example
by its id, which of a name is ``ftrace.scores.stable_id(name)``. Of absolute paths the last name stays: the
folders above it may name a person or a project.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ftrace.report.explorer.format import Causal, Claim, Example, ExamplePage, QueryChunk, RunPage
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


def redacted_run(run: RunPage) -> RunPage:
    """Return the page of a run without the folders in which it lies."""
    claims: list[Claim] = [
        {"claim": claim["claim"], "command": shlex.join(map(_without_folders, shlex.split(claim["command"])))}
        for claim in run["claims"]
    ]
    folder = run["folder"]
    return {**run, "folder": None if folder is None else _without_folders(folder), "claims": claims}


def _without_folders(word: str) -> str:
    """Shorten an absolute path, or that of an option, to its last name.

    Example:
        >>> [_without_folders(word) for word in ("/home/anna/run", "--run=/home/anna/run", "runs/a", "--k=3")]
        ['run', '--run=run', 'runs/a', '--k=3']
    """
    option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word


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

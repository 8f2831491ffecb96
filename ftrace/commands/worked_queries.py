"""Some queries of a run worked out: who taught them, printed after training and kept in a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from rich.console import Console

from ftrace.console import PlainConsole
from ftrace.evaluation.answers import ModelAnswer
from ftrace.files.whole_files import whole_file
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from ftrace.views import CUT, Said, StoreSource, make_query_view, render_query

FILE = "worked_queries.txt"
_WIDTH = 100  # of the file
_EXAMPLES = 5  # proponents, near-duplicates included
_OPPONENTS = 3


def said_by_model(run: Run, answer: ModelAnswer) -> Said:
    """Return what a run's model answered, as views show it."""
    return Said(answer.text, answer.probability, answer.right, run.last_snapshot.name)


def work_out(
    run: Run,
    store: ScoreStore,
    kind: str,
    query_ids: Collection[int],
    answers: Mapping[int, ModelAnswer],
    console: Console,
) -> Path:
    """Print queries with their strongest examples, and write them to a file in the run's folder.

    Args:
        run: The run.
        store: Its scores.
        kind: The kind of scores.
        query_ids: The queries.
        answers: What the model answers to them, by id.
        console: Where to print them.

    Returns:
        The file, which has all texts in full.
    """
    source = StoreSource(store, kind)
    views = [
        make_query_view([source], query, _EXAMPLES, _OPPONENTS, said_by_model(run, answers[query]))
        for query in query_ids
    ]
    for view in views:
        console.print(render_query(view, CUT, console.width))
        console.print()
    plain = PlainConsole(width=_WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with plain.capture() as capture:
        for view in views:
            plain.print(render_query(view, width=_WIDTH), "")
    with whole_file(run.folder / FILE) as temporary:
        lines = [f"{line.rstrip()}\n" for line in capture.get().splitlines()]
        temporary.write_text("".join(lines), encoding="utf-8")
    return run.folder / FILE

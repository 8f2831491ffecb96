"""Lists of the examples that taught answers, that argued against them, and that argue for one rather than another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from ftrace.commands.answer_scores import AnswerScores
from ftrace.commands.answer_source import AnswerSource
from ftrace.commands.asking import GivenAnswer, Question
from ftrace.scores import ScoreStore
from ftrace.views import StoreSource, make_query_view, render_examples

_DIFFERENCE = "difference"
_COLUMN, _HEADING = 24, 80  # characters of an answer at the head of a column, and of a list


def render_lists(
    question: Question,
    scored: AnswerScores,
    k: int,
    opponents: int,
    online: Path | None = None,
    cut: int | None = None,
) -> Iterator[RenderableType]:
    """Lay out who taught each of one or two answers and who argued against it, and of two, who argues for either.

    Args:
        question: The question.
        scored: The scores of the answers.
        k: How many proponents of each.
        opponents: How many opponents of each.
        online: Scores of the run's queries that are shown beside those of the right answer, if they are of it.
        cut: The most characters of a text; default: all.
    """
    names = _names(scored.answers)
    columns = [
        _column(question, scored, name, scored.scores[:, place], answer)
        for place, (name, answer) in enumerate(zip(names, scored.answers, strict=True))
    ]
    for place, answer in enumerate(scored.answers):
        others = [column for column in columns if column is not columns[place]]
        in_training = _online(question, scored, online) if answer.right and online is not None else []
        view = make_query_view([columns[place], *others, *in_training], 0, k, opponents, by_first=True)
        called = _shortened(answer.text, _HEADING)
        yield render_examples(view, f"Who taught “{called}”", f"Who argued against “{called}”", cut)
    if len(scored.answers) == 2:
        first, second = scored.answers
        difference = _column(question, scored, _DIFFERENCE, scored.scores[:, 1] - scored.scores[:, 0], second, first)
        view = make_query_view([difference, columns[1], columns[0]], 0, k, k, by_first=True)
        this, other = _shortened(first.text, _HEADING // 2), _shortened(second.text, _HEADING // 2)
        headings = f"Who argues for “{other}” rather than “{this}”", f"Who argues for “{this}” rather than “{other}”"
        yield render_examples(view, *headings, cut)


def _column(
    question: Question, scored: AnswerScores, name: str, scores: np.ndarray, *answers: GivenAnswer
) -> AnswerSource:
    """Make the source of a column, in whose examples the words of the question and of answers are marked."""
    words = " ".join(form for answer in answers for form in (answer.text, *answer.forms))
    row: dict[str, Any] = {"text": question.inputs, "answer": words}
    query = question.query
    if query is not None and scored.data is question.data and len(query["proponent_ids"]):
        row["proponent_ids"] = query["proponent_ids"]
    elif query is not None and query["fact"]:
        row["fact"] = query["fact"]
    return AnswerSource(name, scored.ids, scores, scored.data, row, name if name == _DIFFERENCE else "")


def _online(question: Question, scored: AnswerScores, folder: Path) -> list[AnswerSource]:
    """Return what was scored for the right answer while the run trained, if that is known."""
    query = question.query
    if query is None or scored.data is not question.data or not folder.is_dir():
        return []
    source = StoreSource(ScoreStore.open(folder))
    if query["query_id"] not in source.query_ids:
        return []
    values = source.store.scores(int(query["query_id"]), source.kind)
    name = f"{folder.name} {source.kind}"
    return [AnswerSource(name, np.asarray(source.store.example_ids), values, scored.data, {})]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _names(answers: tuple[GivenAnswer, ...]) -> list[str]:
    """Return short names of answers, which differ."""
    names = [_shortened(answer.text, _COLUMN) for answer in answers]
    return names if len(set(names)) == len(names) else [f"{place}: {name}" for place, name in enumerate(names, 1)]
